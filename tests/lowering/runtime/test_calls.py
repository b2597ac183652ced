"""Ops as tokens of a call."""

import pytest

from lowering.ir import Op, Value
from lowering.ops import fidelity
from lowering.runtime.calls import (
    Activations,
    ComputeConfig,
    Constant,
    DTypeName,
    FullGrid,
    LayoutName,
    MemoryName,
    Tensor,
    Tensors,
    make_call,
)

OUT = Value("y", (2, 2), "float32")
OUT_L1 = Value("y", (2, 2), "float32", memory="l1")


def known(*names, l1=()):
    return {
        name: Value(name, (2, 2), "float32", memory="l1" if name in l1 else "dram")
        for name in names
    }


@pytest.mark.parametrize(
    ("name", "dtypes", "result", "expected"),
    [
        ("matmul", ("bfloat16", "bfloat16"), "bfloat16", "HiFi3"),
        ("matmul", ("bfloat16", "bfloat8_b"), "bfloat16", "HiFi3"),
        ("matmul", ("bfloat16", "bfloat16"), "float32", "HiFi4"),
        ("matmul", ("bfloat16", "float32"), "bfloat16", "HiFi4"),
        ("softmax", ("bfloat16",), "bfloat16", "HiFi3"),
        ("softmax", ("float32",), "float32", "HiFi4"),
        ("add", ("float32", "float32"), "float32", None),
    ],
)
def test_fourth_pass_of_the_multipliers_is_for_float32(name, dtypes, result, expected):
    values = {f"x{i}": Value(f"x{i}", (2, 2), dtype) for i, dtype in enumerate(dtypes)}
    op = Op(name, tuple(values), (Value("y", (2, 2), result),))
    assert fidelity(op, values) == expected


@pytest.mark.parametrize(
    ("op", "positional", "keywords"),
    [
        (Op("exp", ("a",), (OUT,)), (Tensor("a"),), {}),
        (Op("add", ("a", "b"), (OUT,)), (Tensor("a"), Tensor("b")), {}),
        (
            Op("add", ("a",), (OUT,), {"scalar": 2.0, "activations": ["relu"]}),
            (Tensor("a"), Constant(2.0)),
            {"activations": Activations(("relu",))},
        ),
        (
            Op("linear", ("a", "b", "c"), (OUT,), {"core_grid": "full", "dtype": "bfloat16"}),
            (Tensor("a"), Tensor("b")),
            {
                "bias": Tensor("c"),
                "core_grid": FullGrid(),
                "dtype": DTypeName("bfloat16"),
                "compute_kernel_config": ComputeConfig("HiFi4"),
            },
        ),
        (
            Op("gather", ("a", "b"), (OUT,), {"dim": 1}),
            (Tensor("a"), Constant(1)),
            {"index": Tensor("b")},
        ),
        (
            Op("layer_norm", ("a", "b", "c"), (OUT,), {"epsilon": 1e-6}),
            (Tensor("a"),),
            {
                "weight": Tensor("b"),
                "bias": Tensor("c"),
                "epsilon": Constant(1e-6),
                "compute_kernel_config": ComputeConfig("HiFi4"),
            },
        ),
        (
            Op("concat", ("a", "b", "c"), (OUT,), {"dim": -1}),
            (Tensors(("a", "b", "c")), Constant(-1)),
            {},
        ),
        (
            Op("reshape", ("a",), (OUT,), {"shape": (2, 2)}),
            (Tensor("a"), Constant([2, 2])),
            {},
        ),
        (
            Op("typecast", ("a",), (OUT,), {"dtype": "int32"}),
            (Tensor("a"), DTypeName("int32")),
            {},
        ),
        (
            Op("to_layout", ("a",), (OUT,), {"layout": "row_major"}),
            (Tensor("a"), LayoutName("row_major")),
            {},
        ),
        (
            Op("where", ("a", "b"), (OUT,), {"true_scalar": 0.0}),
            (Tensor("a"), Constant(0.0), Tensor("b")),
            {},
        ),
        (
            Op("where", ("a", "b", "c"), (OUT,)),
            (Tensor("a"), Tensor("b"), Tensor("c")),
            {},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Op) else "",
)
def test_call_of_an_op(op, positional, keywords):
    call = make_call(op, known("a", "b", "c"))
    assert call.function == op.name
    assert call.positional == positional
    assert call.keywords == keywords


def test_memory_is_stated_where_l1_is_involved():
    plain = make_call(Op("exp", ("a",), (OUT,)), known("a"))
    into = make_call(Op("exp", ("a",), (OUT_L1,)), known("a"))
    out_of = make_call(Op("exp", ("a",), (OUT,)), known("a", l1="a"))
    assert "memory_config" not in plain.keywords
    assert into.keywords["memory_config"] == MemoryName("l1")
    assert out_of.keywords["memory_config"] == MemoryName("dram")
