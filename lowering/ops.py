"""The ttnn ops that a Program may contain: how each is called, what shape and dtype come out.

One table, read by everybody who meets an op: the rules (shapes), the verifier between passes, the
runtime (a whitelist; nothing outside this table is ever called), the code generator (call text) and
the reference backend (names). Standard library only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lowering import infer_shapes as shape
from lowering.infer_shapes import Typed
from lowering.ir import FLOATS, Layout, Memory, Op, Value

Fidelity = Literal["LoFi", "HiFi2", "HiFi3", "HiFi4"]
Infer = Callable[[Sequence[Value], Mapping[str, Any]], list[Typed]]


@dataclass(frozen=True)
class OpSpec:
    """How one ttnn op is called.

    `positional`: attrs passed by position after the tensors; every other attr is a keyword.
    `keywords`: tensor inputs from that index on are passed under these names. `compute`: takes a
    compute_kernel_config. `memory`: takes a memory_config. `layouts`: layout that each tensor input
    must have (default all tile); `result`: layout of the results. `in_dram`, `in_rows`: indices of
    inputs that must not lie in L1, or must lie there in row blocks; `place`: where results lie
    before memory is assigned. `in_place`: index of the state that the op writes: the result is that
    tensor.
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
    in_dram: tuple[int, ...] = ()
    in_rows: tuple[int, ...] = ()
    place: Memory = "dram"
    in_place: int | None = None
    arity: tuple[int, int] = (1, 1)

    def attrs(self) -> frozenset[str]:
        """Every attr that the op takes."""
        return frozenset(self.positional + self.optional)


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
_ACTIVATED = ("add", "subtract", "multiply")


def _binary(name: str) -> OpSpec:
    """A tensor and another, or a scalar."""
    optional = ("dtype", "activations") if name in _ACTIVATED else ("dtype",)
    return OpSpec(shape.elementwise, positional=("scalar",), optional=optional, arity=(1, 2))


def _reduction(name: str) -> OpSpec:
    return OpSpec(shape.reduce, optional=("dim", "keepdim"), compute=name in ("sum", "mean"))


OPS: dict[str, OpSpec] = {
    **{name: OpSpec(shape.same) for name in UNARY},
    **{name: _binary(name) for name in (*BINARY, *COMPARISONS)},
    **{name: _reduction(name) for name in ("sum", "mean", "max", "min")},
    "rdiv": OpSpec(shape.quotient, positional=("scalar",)),
    "divide": OpSpec(shape.quotient, positional=("scalar",), optional=("dtype",), arity=(1, 2)),
    "fmod": OpSpec(shape.elementwise, positional=("scalar",), arity=(1, 2)),
    "floor_div": OpSpec(shape.quotient, positional=("scalar",), arity=(1, 2)),
    "clamp": OpSpec(shape.same, optional=("min", "max")),
    "gelu": OpSpec(shape.same, optional=("fast_and_approximate_mode",)),
    "var": OpSpec(shape.reduce, optional=("dim", "keepdim", "correction"), compute=True),
    "where": OpSpec(shape.where, positional=("true_scalar", "false_scalar"), arity=(1, 3)),
    "addcmul": OpSpec(shape.elementwise, arity=(3, 3)),
    "matmul": OpSpec(
        shape.matmul,
        optional=("transpose_a", "transpose_b", "dtype", "program_config"),
        compute=True,
        arity=(2, 2),
    ),
    "sparse_matmul": OpSpec(
        shape.sparse_matmul,
        optional=("is_input_a_sparse", "dtype", "program_config"),
        keywords=("sparsity", "indices"),
        compute=True,
        layouts=("tile", "tile", "row_major", "row_major"),
        arity=(3, 4),
    ),
    "linear": OpSpec(
        shape.matmul,
        optional=("transpose_a", "transpose_b", "activation", "core_grid", "dtype"),
        keywords=("bias",),
        compute=True,
        arity=(2, 3),
    ),
    "softmax": OpSpec(shape.same, optional=("dim", "numeric_stable"), compute=True),
    "rms_norm": OpSpec(
        shape.same, optional=("epsilon",), keywords=("weight",), compute=True, arity=(1, 2)
    ),
    "layer_norm": OpSpec(
        shape.same, optional=("epsilon",), keywords=("weight", "bias"), compute=True, arity=(1, 3)
    ),
    "scaled_dot_product_attention": OpSpec(
        shape.attention,
        optional=("is_causal", "scale", "program_config"),
        keywords=("attn_mask",),
        compute=True,
        in_dram=(3,),
        arity=(3, 4),
    ),
    "scaled_dot_product_attention_decode": OpSpec(
        shape.attention_decode,
        optional=("is_causal", "scale", "program_config"),
        keywords=("attn_mask",),
        compute=True,
        in_dram=(0, 1, 2),
        arity=(4, 4),
    ),
    "fill_cache": OpSpec(
        shape.fill_cache, positional=("batch_idx",), memory=False, in_place=0, arity=(2, 2)
    ),
    "paged_update_cache": OpSpec(
        shape.update_cache,
        keywords=("update_idxs_tensor",),
        memory=False,
        layouts=("tile", "tile", "row_major"),
        in_dram=(2,),
        in_rows=(1,),
        in_place=0,
        arity=(3, 3),
    ),
    "copy": OpSpec(shape.copy, memory=False, in_place=1, arity=(2, 2)),
    "to_memory_config": OpSpec(shape.same, memory=False, place="rows"),
    "argmax": OpSpec(shape.argmax, optional=("dim", "keepdim"), result="row_major"),
    "cumsum": OpSpec(shape.same, positional=("dim",), optional=("reverse_order",)),
    "cumprod": OpSpec(shape.same, positional=("dim",), optional=("reverse_order",)),
    "topk": OpSpec(shape.topk, positional=("k",), optional=("dim", "largest", "sorted", "stable")),
    "sort": OpSpec(shape.sort, positional=("dim", "descending"), optional=("stable",)),
    "gather": OpSpec(shape.gather, positional=("dim",), keywords=("index",), arity=(2, 2)),
    "embedding": OpSpec(
        shape.embedding, layouts=("row_major", "row_major"), optional=("layout",), arity=(2, 2)
    ),
    "concat": OpSpec(shape.concat, positional=("dim",), list_inputs=True, arity=(1, 64)),
    "slice": OpSpec(shape.slice_, positional=("begins", "ends", "steps")),
    "pad": OpSpec(shape.pad, positional=("padding", "value")),
    "permute": OpSpec(shape.permute, positional=("dims",)),
    "reshape": OpSpec(shape.reshape, positional=("shape",)),
    "expand": OpSpec(shape.expand, positional=("shape",)),
    "typecast": OpSpec(shape.same, positional=("dtype",)),
    "to_layout": OpSpec(shape.to_layout, positional=("layout",)),
}


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


def fidelity(op: Op, values: Mapping[str, Value]) -> Fidelity | None:
    """How exactly an op multiplies; None for one that takes no compute config.

    The multipliers take high and low halves of mantissas, a pass for each pair. Without the fourth
    pass, low by low, bfloat16 results are as good; without the third their error is up to four
    times as large (docs/device_parity.md, "Math fidelity").
    """
    if not OPS[op.name].compute:
        return None
    seen = (*(values[name] for name in op.inputs), *op.outputs)
    return "HiFi4" if any(value.dtype == "float32" for value in seen) else "HiFi3"


def is_float(value: Value) -> bool:
    return value.dtype in FLOATS


def expected_outputs(op: Op, values: Mapping[str, Value]) -> list[Typed]:
    """What `infer` says of an op inside a program."""
    return infer(op.name, [values[name] for name in op.inputs], op.attrs)
