"""The ttnn ops that a Program may contain: how each is called, what shape and dtype come out.

One table, read by everybody who meets an op: the rules (shapes), the verifier between passes, the
runtime (a whitelist; nothing outside this table is ever called), the code generator (call text) and
the reference backend (names). Standard library only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lowering.ir import FLOATS, TILE, DType, Layout, Op, Value

Typed = tuple[tuple[int, ...], DType]
Infer = Callable[[Sequence[Value], Mapping[str, Any]], list[Typed]]


@dataclass(frozen=True)
class OpSpec:
    """How one ttnn op is called.

    `positional`: attrs passed by position after the tensors; every other attr is a keyword.
    `keywords`: tensor inputs from that index on are passed under these names. `compute`: takes a
    compute_kernel_config. `memory`: takes a memory_config. `layouts`: layout that each tensor input
    must have (default all tile); `result`: layout of the results.
    """

    infer: Infer
    positional: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    list_inputs: bool = False
    compute: bool = False
    memory: bool = True
    layouts: tuple[Layout, ...] = ()
    result: Layout = "tile"
    arity: tuple[int, int] = (1, 1)

    def attrs(self) -> frozenset[str]:
        """Every attr that the op takes."""
        return frozenset(self.positional + self.optional)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Numpy's broadcast of shapes; ValueError when they do not fit."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        size = max(sizes) if 0 not in sizes else 0
        if any(other not in (1, size) for other in sizes):
            raise ValueError(f"shapes {shapes} do not broadcast")
        result.append(size)
    return tuple(result)


def _same(values, attrs) -> list[Typed]:
    return [(values[0].shape, attrs.get("dtype", values[0].dtype))]


def _elementwise(values, attrs) -> list[Typed]:
    return [(broadcast(*(value.shape for value in values)), attrs.get("dtype", values[0].dtype))]


def _quotient(values, attrs) -> list[Typed]:
    ((shape, dtype),) = _elementwise(values, attrs)
    return [(shape, dtype if dtype in FLOATS else "float32")]


def _where(values, attrs) -> list[Typed]:
    branch = values[-1] if len(values) > 1 else values[0]
    return [(broadcast(*(value.shape for value in values)), branch.dtype)]


def _matmul(values, attrs) -> list[Typed]:
    a, b = values[0].shape, values[1].shape
    a = (*a[:-2], a[-1], a[-2]) if attrs.get("transpose_a") else a
    b = (*b[:-2], b[-1], b[-2]) if attrs.get("transpose_b") else b
    if a[-1] != b[-2]:
        raise ValueError(
            f"matmul of {values[0]} and {values[1]}: inner sizes {a[-1]} and {b[-2]} differ"
        )
    return [((*broadcast(a[:-2], b[:-2]), a[-2], b[-1]), attrs.get("dtype", values[0].dtype))]


def _axes(rank: int, dim) -> list[int]:
    if dim is None:
        return list(range(rank))
    return sorted(axis % rank for axis in (dim if isinstance(dim, list | tuple) else [dim]))


def _reduced(shape: tuple[int, ...], attrs) -> tuple[int, ...]:
    axes = _axes(len(shape), attrs["dim"])
    if attrs.get("keepdim"):
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _reduce(values, attrs) -> list[Typed]:
    return [(_reduced(values[0].shape, attrs), values[0].dtype)]


def _argmax(values, attrs) -> list[Typed]:
    return [(_reduced(values[0].shape, attrs), "uint32")]


def _index_dtype(value: Value) -> DType:
    return "uint32" if value.dtype == "float32" else "uint16"


def _topk(values, attrs) -> list[Typed]:
    (x,) = values
    shape = list(x.shape)
    shape[attrs["dim"]] = attrs["k"]
    return [(tuple(shape), x.dtype), (tuple(shape), _index_dtype(x))]


def _sort(values, attrs) -> list[Typed]:
    (x,) = values
    return [(x.shape, x.dtype), (x.shape, _index_dtype(x))]


def _gather(values, attrs) -> list[Typed]:
    return [(values[1].shape, values[0].dtype)]


def _embedding(values, attrs) -> list[Typed]:
    ids, table = values
    return [((*ids.shape, table.shape[-1]), table.dtype)]


def _unblocked(dtype: DType, whole: bool) -> DType:
    """Block floats become bfloat16 where an op takes 32x32 tiles apart."""
    return "bfloat16" if dtype == "bfloat8_b" and not whole else dtype


def _to_layout(values, attrs) -> list[Typed]:
    return [(values[0].shape, _unblocked(values[0].dtype, attrs["layout"] == "tile"))]


def _concat(values, attrs) -> list[Typed]:
    dim = attrs["dim"] % len(values[0].shape)
    shape = list(values[0].shape)
    shape[dim] = sum(value.shape[dim] for value in values)
    whole = dim < len(shape) - 2 or all(value.shape[dim] % TILE == 0 for value in values)
    return [(tuple(shape), _unblocked(values[0].dtype, whole))]


def _slice(values, attrs) -> list[Typed]:
    spans = zip(attrs["begins"], attrs["ends"], attrs["steps"], strict=True)
    shape = tuple(max(0, -(-(end - begin) // step)) for begin, end, step in spans)
    whole = all(begin % TILE == 0 for begin in attrs["begins"][-2:]) and set(attrs["steps"]) == {1}
    return [(shape, _unblocked(values[0].dtype, whole))]


def _pad(values, attrs) -> list[Typed]:
    sizes = zip(values[0].shape, attrs["padding"], strict=True)
    return [(tuple(low + size + high for size, (low, high) in sizes), values[0].dtype)]


def _permute(values, attrs) -> list[Typed]:
    return [(tuple(values[0].shape[axis] for axis in attrs["dims"]), values[0].dtype)]


def _reshape(values, attrs) -> list[Typed]:
    shape = tuple(attrs["shape"])
    if math.prod(shape) != math.prod(values[0].shape):
        raise ValueError(f"reshape of {values[0]} to {shape}: element counts differ")
    return [(shape, values[0].dtype)]


def _expand(values, attrs) -> list[Typed]:
    shape = tuple(attrs["shape"])
    if broadcast(values[0].shape, shape) != shape:
        raise ValueError(f"expand of {values[0]} to {shape}")
    return [(shape, values[0].dtype)]


def _table() -> dict[str, OpSpec]:
    ops: dict[str, OpSpec] = {}
    for name in UNARY:
        ops[name] = OpSpec(_same)
    for name in (*BINARY, *COMPARISONS):
        optional = (
            ("dtype", "activations") if name in ("add", "subtract", "multiply") else ("dtype",)
        )
        ops[name] = OpSpec(_elementwise, positional=("scalar",), optional=optional, arity=(1, 2))
    ops["rdiv"] = OpSpec(_quotient, positional=("scalar",))
    ops["divide"] = OpSpec(_quotient, positional=("scalar",), optional=("dtype",), arity=(1, 2))
    ops["fmod"] = OpSpec(_elementwise, positional=("scalar",), arity=(1, 2))
    ops["floor_div"] = OpSpec(_quotient, positional=("scalar",), arity=(1, 2))
    for name in ("sum", "mean", "max", "min", "prod"):
        ops[name] = OpSpec(_reduce, optional=("dim", "keepdim"), compute=name in ("sum", "mean"))
    ops |= {
        "clamp": OpSpec(_same, optional=("min", "max")),
        "gelu": OpSpec(_same, optional=("fast_and_approximate_mode",)),
        "var": OpSpec(_reduce, optional=("dim", "keepdim", "correction"), compute=True),
        "where": OpSpec(_where, positional=("true_scalar", "false_scalar"), arity=(1, 3)),
        "addcmul": OpSpec(_elementwise, arity=(3, 3)),
        "matmul": OpSpec(
            _matmul,
            optional=("transpose_a", "transpose_b", "dtype", "program_config"),
            compute=True,
            arity=(2, 2),
        ),
        "linear": OpSpec(
            _matmul,
            optional=("transpose_a", "transpose_b", "activation", "core_grid", "dtype"),
            keywords=("bias",),
            compute=True,
            arity=(2, 3),
        ),
        "softmax": OpSpec(_same, optional=("dim", "numeric_stable"), compute=True),
        "rms_norm": OpSpec(
            _same, optional=("epsilon",), keywords=("weight",), compute=True, arity=(1, 2)
        ),
        "layer_norm": OpSpec(
            _same, optional=("epsilon",), keywords=("weight", "bias"), compute=True, arity=(1, 3)
        ),
        "argmax": OpSpec(_argmax, optional=("dim", "keepdim"), result="row_major"),
        "cumsum": OpSpec(_same, positional=("dim",), optional=("reverse_order",)),
        "cumprod": OpSpec(_same, positional=("dim",), optional=("reverse_order",)),
        "topk": OpSpec(_topk, positional=("k",), optional=("dim", "largest", "sorted", "stable")),
        "sort": OpSpec(_sort, positional=("dim", "descending"), optional=("stable",)),
        "gather": OpSpec(_gather, positional=("dim",), keywords=("index",), arity=(2, 2)),
        "embedding": OpSpec(
            _embedding, layouts=("row_major", "row_major"), optional=("layout",), arity=(2, 2)
        ),
        "concat": OpSpec(_concat, positional=("dim",), list_inputs=True, arity=(1, 64)),
        "slice": OpSpec(_slice, positional=("begins", "ends", "steps")),
        "pad": OpSpec(_pad, positional=("padding", "value")),
        "permute": OpSpec(_permute, positional=("dims",)),
        "reshape": OpSpec(_reshape, positional=("shape",)),
        "expand": OpSpec(_expand, positional=("shape",)),
        "typecast": OpSpec(
            lambda values, attrs: [(values[0].shape, attrs["dtype"])], positional=("dtype",)
        ),
        "to_layout": OpSpec(_to_layout, positional=("layout",)),
    }
    return ops


# fmt: off
UNARY = (
    "exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "square", "abs", "neg",
    "sign", "floor", "ceil", "round", "tanh", "sigmoid", "erf", "erfc", "relu", "silu", "softplus",
    "sin", "cos", "log2", "logical_not", "isfinite", "isnan",
)
BINARY = (
    "add", "subtract", "multiply", "rsub", "maximum", "minimum", "pow", "remainder",
    "logical_and", "logical_or",
)
# fmt: on
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
# every op that works element by element and broadcasts its operands
ELEMENTWISE = frozenset(
    {*UNARY, *BINARY, *COMPARISONS, "divide", "rdiv", "floor_div", "fmod"}
    | {"where", "addcmul", "clamp", "typecast", "gelu"}
)
OPS: dict[str, OpSpec] = _table()


def infer(name: str, values: Sequence[Value], attrs: Mapping[str, Any]) -> list[Typed]:
    """Shapes and dtypes of an op's results; ValueError for what the table does not allow."""
    spec = OPS.get(name)
    if spec is None:
        raise ValueError(
            f"op {name!r} is not in the table of ttnn ops; it holds {', '.join(sorted(OPS))}"
        )
    unknown = set(attrs) - spec.attrs()
    if unknown:
        raise ValueError(
            f"op {name!r} takes no attr {sorted(unknown)}; it takes {sorted(spec.attrs())}"
        )
    low, high = spec.arity
    if not low <= len(values) <= high:
        raise ValueError(f"op {name!r} takes {low} to {high} tensors, got {len(values)}")
    return spec.infer(values, attrs)


def is_float(value: Value) -> bool:
    return value.dtype in FLOATS


def expected_outputs(op: Op, values: Mapping[str, Value]) -> list[Typed]:
    """What `infer` says of an op inside a program."""
    return infer(op.name, [values[name] for name in op.inputs], op.attrs)
