"""Runs a Program on the host with numpy: exactly, or with the rounding of the device.

`exact`: float32 arithmetic, whatever dtypes the program names. `device`: every value is held in its
device dtype, and ops round as ttnn was measured to round on the Wormhole simulator (see
numerics.py), so that device error is predicted before a device is there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lowering.backends import numerics
from lowering.backends.definitions import REFERENCE, attention_weights, weighted_values
from lowering.ir import FLOATS, Op, Program, Value

Mode = Literal["exact", "device"]
OnOp = Callable[[Op, Sequence[np.ndarray]], None]


def run(
    program: Program,
    inputs: Mapping[str, Any],
    mode: Mode = "exact",
    on_op: OnOp | None = None,
    state: dict[str, np.ndarray] | None = None,
) -> list[np.ndarray]:
    """The program's results. `on_op` sees each op with its results, for comparing op by op.

    `state` holds numbers by name (zeros where it holds none), and the new ones after the run.
    """
    state = {} if state is None else state
    env = {v.name: _held(program.arrays[v.name], v, mode) for v in program.weights}
    env |= {v.name: _held(state.get(v.name, np.zeros(v.shape)), v, mode) for v in program.state}
    env |= {v.name: _held(_input(inputs, v), v, mode) for v in program.inputs}
    values = program.values()
    with np.errstate(all="ignore"):
        for op in program.ops:
            operands = [env[name] for name in op.inputs]
            if mode == "device":
                results = _device(op, operands, [values[name] for name in op.inputs])
            else:
                results = _results(op, operands)
            env |= {value.name: r for value, r in zip(op.outputs, results, strict=True)}
            if on_op is not None:
                on_op(op, results)
            for name in op.frees:
                del env[name]
    state |= {v.name: env[name] for v, name in zip(program.state, program.kept, strict=True)}
    return [env[name] for name in program.outputs]


class HostSession:
    """A program that runs here as `lowering.runtime.Session` runs it on a device."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, np.ndarray],
        mode: Mode = "device",
        shared: "HostSession | None" = None,
    ):
        """`shared`: a session whose state of the same name serves this one as well."""
        self.program = program.replace(arrays=weights)
        self.numbers: dict[str, np.ndarray] = shared.numbers if shared is not None else {}
        self._mode: Mode = mode

    def run(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """Outputs for inputs by name; state moves on."""
        return run(self.program, inputs, self._mode, state=self.numbers)

    def reset(self) -> None:
        """Zeros for all state."""
        self.numbers.clear()

    def set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Give state by name its numbers."""
        self.numbers |= arrays

    def state(self) -> dict[str, np.ndarray]:
        """State by name."""
        return {v.name: self.numbers.get(v.name, np.zeros(v.shape)) for v in self.program.state}


def _held(array: Any, value: Value, mode: Mode) -> np.ndarray:
    array = _typed(np.asarray(array), value)
    return numerics.round_to(array, value.dtype) if mode == "device" else array


def _typed(array: Any, value: Value) -> np.ndarray:
    """Truth values and floats as float32, integers as the value says."""
    return np.asarray(array, np.float32 if value.dtype in FLOATS else value.dtype)


def _input(inputs: Mapping[str, Any], value: Value) -> Any:
    if value.name not in inputs:
        raise ValueError(f"input {value.name!r} is missing; got {', '.join(inputs)}")
    array = inputs[value.name]
    if tuple(np.shape(array)) != value.shape:
        raise ValueError(
            f"input {value.name!r} has shape {np.shape(array)}, expected {value.shape}"
        )
    return array


def _results(op: Op, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    results = REFERENCE[op.name](*operands, **op.attrs)
    results = list(results) if isinstance(results, tuple) else [results]
    return [_typed(r, value) for r, value in zip(results, op.outputs, strict=True)]


def _device(op: Op, operands: Sequence[np.ndarray], values: Sequence[Value]) -> list[np.ndarray]:
    """The results as ttnn would round them."""
    emulate = _EMULATIONS.get(op.name)
    results = emulate(op, operands, values) if emulate else _results(op, operands)
    return [
        numerics.round_to(r, value.dtype) if value.dtype in FLOATS else r
        for r, value in zip(results, op.outputs, strict=True)
    ]


def _product(op: Op, operands, values) -> list[np.ndarray]:
    """float32 operands are cut to TF32; the float32 accumulator keeps about 10 bits."""
    cut = [
        numerics.truncate_mantissa(x, 10) if value.dtype == "float32" else x
        for x, value in zip(operands[:2], values[:2], strict=True)
    ]
    return [numerics.truncate_mantissa(r, 10) for r in _results(op, [*cut, *operands[2:]])]


def _binary(op: Op, operands, values) -> list[np.ndarray]:
    """A scalar beside bfloat16 is rounded first; bfloat16 sums round ties away from zero."""
    if values[0].dtype not in ("bfloat16", "bfloat8_b"):
        return _results(op, operands)
    attrs = dict(op.attrs)
    if "scalar" in attrs:
        scalar = np.asarray(attrs["scalar"], np.float32)
        attrs["scalar"] = float(numerics.round_to(scalar, "bfloat16"))
    results = _results(op.replace(attrs=attrs), operands)
    away = op.name in ("add", "subtract", "rsub") and op.output.dtype == "bfloat16"
    return [numerics.round_half_away(r) for r in results] if away else results


def _mean(op: Op, operands, values) -> list[np.ndarray]:
    """In bfloat16 the factor 1 / count is rounded as well."""
    if values[0].dtype == "float32":
        return _results(op, operands)
    count = np.float32(operands[0].size / np.prod(op.output.shape))
    factor = numerics.round_to(np.asarray(1 / count), "bfloat16")
    return [r * count * factor for r in _results(op, operands)]


def _reduced_precision(op: Op, operands, values) -> list[np.ndarray]:
    """softmax and norms of float32 work in TF32."""
    if values[0].dtype != "float32":
        return _results(op, operands)
    cut = [numerics.truncate_mantissa(x, 10) for x in operands]
    return [numerics.truncate_mantissa(r, 10) for r in _results(op, cut)]


def _attention(op: Op, operands, values) -> list[np.ndarray]:
    """The weights of the values are bfloat16, sums float32."""
    q, k, v, *mask = operands
    weights = attention_weights(q, k, *mask, **op.attrs)
    return [_typed(weighted_values(numerics.round_to(weights, "bfloat16"), v), op.output)]


def _attention_decode(op: Op, operands, values) -> list[np.ndarray]:
    """As attention of one step."""
    q, k, v, mask = operands
    moved = [np.moveaxis(q, 0, 2), k, v, np.moveaxis(mask, 1, 2)]
    return [np.moveaxis(_attention(op, moved, values)[0], 2, 0)]


_EMULATIONS = {
    "matmul": _product,
    "linear": _product,
    "sparse_matmul": _product,
    "add": _binary,
    "subtract": _binary,
    "rsub": _binary,
    "multiply": _binary,
    "divide": _binary,
    "mean": _mean,
    "scaled_dot_product_attention": _attention,
    "scaled_dot_product_attention_decode": _attention_decode,
    "softmax": _reduced_precision,
    "rms_norm": _reduced_precision,
    "layer_norm": _reduced_precision,
}
