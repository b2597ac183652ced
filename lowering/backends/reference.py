"""Runs a Program with JAX on the host: exactly, or with the rounding of the device.

`exact`: float32 arithmetic as JAX does it, whatever dtypes the program names. `device`: every
value is held in its device dtype, and ops round as ttnn was measured to round on the Wormhole
simulator (see numerics.py), so that device error is predicted before a device is there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lowering.backends import numerics
from lowering.ir import FLOATS, Op, Program, Value

Mode = Literal["exact", "device"]
OnOp = Callable[[Op, Sequence[np.ndarray]], None]


def run(
    program: Program,
    inputs: Mapping[str, np.ndarray],
    mode: Mode = "exact",
    on_op: OnOp | None = None,
) -> list[np.ndarray]:
    """The program's results. `on_op` sees each op with its results, for comparing op by op."""
    hold = numerics.round_to if mode == "device" else lambda array, dtype: array
    env = {v.name: hold(_host(program.arrays[v.name]), v.dtype) for v in program.weights}
    env |= {v.name: hold(_host(_input(inputs, v)), v.dtype) for v in program.inputs}
    values = program.values()
    with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
        for op in program.ops:
            operands = [env[name] for name in op.inputs]
            if mode == "device":
                results = _device(op, operands, [values[name] for name in op.inputs])
            else:
                results = _results(op, operands)
            env |= {value.name: r for value, r in zip(op.outputs, results, strict=True)}
            if on_op is not None:
                on_op(op, [np.asarray(result) for result in results])
            for name in op.frees:
                del env[name]
    return [np.asarray(env[name]) for name in program.outputs]


def _host(array: Any) -> jax.Array:
    array = jnp.asarray(array)
    return array.astype(jnp.float32) if array.dtype.kind in "fb" else array


def _input(inputs: Mapping[str, Any], value: Value) -> Any:
    if value.name not in inputs:
        raise ValueError(f"input {value.name!r} is missing; got {', '.join(inputs)}")
    array = inputs[value.name]
    if tuple(np.shape(array)) != value.shape:
        raise ValueError(
            f"input {value.name!r} has shape {np.shape(array)}, expected {value.shape}"
        )
    return array


def _results(op: Op, operands: Sequence[jax.Array]) -> list[jax.Array]:
    results = REFERENCE[op.name](*operands, **op.attrs)
    results = list(results) if isinstance(results, tuple) else [results]
    return [_typed(r, value) for r, value in zip(results, op.outputs, strict=True)]


def _typed(array: jax.Array, value: Value) -> jax.Array:
    """Truth values and floats as float32, integers as the value says."""
    return array.astype(jnp.float32 if value.dtype in FLOATS else value.dtype)


def _device(op: Op, operands: Sequence[jax.Array], values: Sequence[Value]) -> list[jax.Array]:
    """The results as ttnn would round them."""
    emulate = _EMULATIONS.get(op.name)
    results = emulate(op, operands, values) if emulate else _results(op, operands)
    return [
        numerics.round_to(r, value.dtype) if value.dtype in FLOATS else r
        for r, value in zip(results, op.outputs, strict=True)
    ]


def _product(op: Op, operands, values) -> list[jax.Array]:
    """float32 operands are cut to TF32; the float32 accumulator keeps about 10 bits."""
    cut = [
        numerics.truncate_mantissa(x, 10) if value.dtype == "float32" else x
        for x, value in zip(operands[:2], values[:2], strict=True)
    ]
    return [numerics.truncate_mantissa(r, 10) for r in _results(op, [*cut, *operands[2:]])]


def _binary(op: Op, operands, values) -> list[jax.Array]:
    """A scalar beside bfloat16 is rounded first; bfloat16 sums round ties away from zero."""
    if values[0].dtype == "float32":
        return _results(op, operands)
    attrs = dict(op.attrs)
    if "scalar" in attrs:
        attrs["scalar"] = float(numerics.round_to(jnp.float32(attrs["scalar"]), "bfloat16"))
    results = _results(op.replace(attrs=attrs), operands)
    away = op.name in ("add", "subtract", "rsub") and op.output.dtype == "bfloat16"
    return [numerics.round_half_away(r) for r in results] if away else results


def _mean(op: Op, operands, values) -> list[jax.Array]:
    """In bfloat16 the factor 1 / count is rounded as well."""
    if values[0].dtype == "float32":
        return _results(op, operands)
    count = operands[0].size / np.prod(op.output.shape)
    factor = numerics.round_to(jnp.float32(1 / count), "bfloat16")
    return [r * count * factor for r in _results(op, operands)]


def _reduced_precision(op: Op, operands, values) -> list[jax.Array]:
    """softmax and norms of float32 work in TF32."""
    if values[0].dtype != "float32":
        return _results(op, operands)
    cut = [numerics.truncate_mantissa(x, 10) for x in operands]
    return [numerics.truncate_mantissa(r, 10) for r in _results(op, cut)]


_EMULATIONS = {
    "matmul": _product,
    "linear": _product,
    "add": _binary,
    "subtract": _binary,
    "rsub": _binary,
    "multiply": _binary,
    "divide": _binary,
    "mean": _mean,
    "softmax": _reduced_precision,
    "rms_norm": _reduced_precision,
    "layer_norm": _reduced_precision,
}

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "exp": jnp.exp,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "square": jnp.square,
    "abs": jnp.abs,
}


def _binary_op(function: Callable[..., jax.Array]):
    def run_binary(a, b=None, *, scalar=None, activations=(), dtype=None):
        del dtype
        result = function(a, b if b is not None else jnp.asarray(scalar, a.dtype))
        for name in activations:
            result = ACTIVATIONS[name](result)
        return result

    return run_binary


def _swap(x: jax.Array, flag: bool) -> jax.Array:
    return jnp.swapaxes(x, -1, -2) if flag else x


def _matmul(a, b, bias=None, *, transpose_a=False, transpose_b=False, activation=None, **_):
    result = jnp.matmul(_swap(a, transpose_a), _swap(b, transpose_b))
    result = result if bias is None else jnp.add(result, jnp.broadcast_to(bias, result.shape))
    return ACTIVATIONS[activation](result) if activation else result


def _where(which, *branches, true_scalar=None, false_scalar=None):
    rest = list(branches)
    true = rest.pop(0) if true_scalar is None else jnp.float32(true_scalar)
    false = rest.pop(0) if false_scalar is None else jnp.float32(false_scalar)
    return jnp.where(which != 0, true, false)


def _reduction(function: Callable[..., jax.Array]):
    def reduce(x, *, dim=None, keepdim=False):
        axes = tuple(dim) if isinstance(dim, list | tuple) else dim
        return function(x, axis=axes, keepdims=keepdim)

    return reduce


def _topk(x, *, k, dim, largest=True, sorted=True, stable=True):
    moved = jnp.moveaxis(x, dim, -1)
    values, ids = jax.lax.top_k(moved if largest else -moved, k)
    values = values if largest else -values
    return jnp.moveaxis(values, -1, dim), jnp.moveaxis(ids, -1, dim)


def _sort(x, *, dim, descending=False, stable=True):
    ids = jnp.argsort(x, axis=dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, ids, axis=dim), ids


def _slice(x, *, begins, ends, steps):
    return x[tuple(slice(*span) for span in zip(begins, ends, steps, strict=True))]


def _gather(x, index, *, dim):
    """torch semantics: axes other than `dim` may be shorter in the index."""
    grid = list(jnp.meshgrid(*map(jnp.arange, index.shape), indexing="ij"))
    grid[dim] = index
    return x[tuple(grid)]


def _rms_norm(x, weight=None, *, epsilon):
    y = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    return y if weight is None else y * jnp.broadcast_to(weight, y.shape)


def _layer_norm(x, weight=None, bias=None, *, epsilon):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    y = _rms_norm(centred, weight, epsilon=epsilon)
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _cumulative(function: Callable[..., jax.Array]):
    def run_cumulative(x, *, dim, reverse_order=False):
        return function(x, axis=dim % x.ndim, reverse=reverse_order)

    return run_cumulative


def _argmax(x, *, dim, keepdim=False):
    return jnp.argmax(x, axis=dim, keepdims=keepdim)


def _gelu(x, *, fast_and_approximate_mode=False):
    return jax.nn.gelu(x, approximate=fast_and_approximate_mode)


def _typecast(x, *, dtype):
    return x.astype(jnp.float32 if dtype in FLOATS else dtype)


_UNARY: dict[str, Callable[[jax.Array], jax.Array]] = {
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "expm1": jnp.expm1,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "reciprocal": jnp.reciprocal,
    "square": jnp.square,
    "abs": jnp.abs,
    "neg": jnp.negative,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "erf": jax.lax.erf,
    "erfc": jax.lax.erfc,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "logical_not": lambda x: x == 0,
    "isfinite": jnp.isfinite,
    "isnan": jnp.isnan,
}
_BINARY: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "add": jnp.add,
    "subtract": jnp.subtract,
    "multiply": jnp.multiply,
    "divide": jnp.divide,
    "rsub": lambda a, b: b - a,
    "rdiv": lambda a, b: b / a,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "pow": jnp.power,
    "remainder": jnp.mod,
    "fmod": jnp.fmod,
    "floor_div": jnp.floor_divide,
    "logical_and": lambda a, b: (a != 0) & (b != 0),
    "logical_or": lambda a, b: (a != 0) | (b != 0),
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
}
REFERENCE: dict[str, Callable[..., Any]] = {
    **_UNARY,
    **{name: _binary_op(function) for name, function in _BINARY.items()},
    "clamp": lambda x, *, min=None, max=None: jnp.clip(x, min, max),
    "gelu": _gelu,
    "where": _where,
    "addcmul": lambda a, b, c: a + b * c,
    "matmul": _matmul,
    "linear": _matmul,
    "sum": _reduction(jnp.sum),
    "mean": _reduction(jnp.mean),
    "max": _reduction(jnp.max),
    "min": _reduction(jnp.min),
    "prod": _reduction(jnp.prod),
    "var": lambda x, *, dim, keepdim=False, correction=True: jnp.var(
        x, axis=dim, keepdims=keepdim, ddof=int(correction)
    ),
    "argmax": _argmax,
    "cumsum": _cumulative(jax.lax.cumsum),
    "cumprod": _cumulative(jax.lax.cumprod),
    "softmax": lambda x, *, dim, numeric_stable=True: jax.nn.softmax(x, axis=dim),
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "topk": _topk,
    "sort": _sort,
    "gather": _gather,
    "embedding": lambda ids, table, *, layout=None: table[ids],
    "concat": lambda *xs, dim: jnp.concatenate(xs, axis=dim),
    "slice": _slice,
    "pad": lambda x, *, padding, value: jnp.pad(x, padding, constant_values=value),
    "permute": lambda x, *, dims: jnp.transpose(x, dims),
    "reshape": lambda x, *, shape: jnp.reshape(x, shape),
    "expand": lambda x, *, shape: jnp.broadcast_to(x, shape),
    "typecast": _typecast,
    "to_layout": lambda x, *, layout: x,
}
