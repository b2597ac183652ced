"""Passes that join neighbouring ops, and those that share equal ones."""

import pytest

from lowering.passes.cse import share_common_subexpressions
from lowering.passes.fuse import fuse_activations, fuse_linear, fuse_multiply_add
from tests.lowering.passes.programs import Tiny, names, unchanged


class TestLinear:
    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6)])
    def test_a_row_of_weights_is_the_bias(self, shape, first):
        p = Tiny()
        product = p.op("matmul", p.input(2, 3, 5), p.weight(5, 6))
        operands = (product, p.weight(*shape))
        y = p.op("add", *(operands if first else operands[::-1]))
        after = unchanged(fuse_linear, p.done(y))
        assert names(after) == ["linear"]
        assert after.values()[after.ops[0].inputs[2]].shape == (1, 6)

    @pytest.mark.parametrize("activation", ["relu", "silu"])
    def test_an_activation_joins(self, activation):
        p = Tiny()
        y = p.op("add", p.op("matmul", p.input(3, 5), p.weight(5, 6)), p.weight(6))
        after = unchanged(fuse_linear, p.done(p.op(activation, y)))
        assert names(after) == ["linear"]
        assert after.ops[0].attrs["activation"] == activation

    def test_an_activation_joins_a_product_without_bias(self):
        p = Tiny()
        y = p.op("silu", p.op("matmul", p.input(2, 3, 5), p.weight(5, 6)))
        after = unchanged(fuse_linear, p.done(y))
        assert [(op.name, op.attrs["activation"]) for op in after.ops] == [("linear", "silu")]
        batched = p.op("silu", p.op("matmul", p.input(2, 3, 5), p.weight(2, 5, 6)))
        assert names(unchanged(fuse_linear, p.done(batched))) == ["matmul", "silu"]

    def test_stays_apart_when_the_product_is_read_twice(self):
        p = Tiny()
        product = p.op("matmul", p.input(3, 5), p.weight(5, 6))
        y = p.op("add", product, p.weight(6))
        assert names(unchanged(fuse_linear, p.done(product, y))) == ["matmul", "add"]

    def test_stays_apart_when_the_bias_is_no_row(self):
        p = Tiny()
        product = p.op("matmul", p.input(3, 5), p.weight(5, 6))
        y = p.op("add", product, p.weight(3, 1))
        assert names(unchanged(fuse_linear, p.done(y))) == ["matmul", "add"]

    def test_stays_apart_when_the_bias_is_computed(self):
        p = Tiny()
        y = p.op("add", p.op("matmul", p.input(3, 5), p.weight(5, 6)), p.input(1, 6))
        assert names(unchanged(fuse_linear, p.done(y))) == ["matmul", "add"]

    def test_stays_apart_when_the_product_has_a_batch_of_weights(self):
        p = Tiny()
        y = p.op("add", p.op("matmul", p.input(2, 3, 5), p.weight(2, 5, 6)), p.weight(6))
        assert names(unchanged(fuse_linear, p.done(y))) == ["matmul", "add"]

    def test_stays_apart_where_the_precision_changes(self):
        p = Tiny("bfloat16")
        product = p.op("matmul", p.input(3, 5), p.weight(5, 6), precise=True)
        y = p.op("add", product, p.weight(6))
        assert names(unchanged(fuse_linear, p.done(y))) == ["matmul", "add"]


class TestMultiplyAdd:
    @pytest.mark.parametrize("first", [True, False])
    def test_a_product_and_an_addend(self, first):
        p = Tiny()
        operands = (p.op("multiply", p.input(3, 5), p.input(1, 5)), p.weight(3, 1))
        y = p.op("add", *(operands if first else operands[::-1]))
        assert names(unchanged(fuse_multiply_add, p.done(y))) == ["addcmul"]

    def test_scalars_and_shared_products_stay_apart(self):
        p = Tiny()
        scaled = p.op("add", p.op("multiply", p.input(3, 5), scalar=2.0), p.input(3, 5))
        product = p.op("multiply", p.input(3, 5), p.input(3, 5))
        y = p.op("add", product, scaled)
        after = unchanged(fuse_multiply_add, p.done(y, product))
        assert names(after) == ["multiply", "add", "multiply", "add"]

    def test_stays_apart_where_the_precision_changes(self):
        p = Tiny("bfloat16")
        product = p.op("multiply", p.input(3, 5), p.input(3, 5), precise=True)
        y = p.op("add", product, p.input(3, 5))
        assert names(unchanged(fuse_multiply_add, p.done(y))) == ["multiply", "add"]


class TestActivations:
    @pytest.mark.parametrize("op", ["add", "subtract", "multiply"])
    def test_a_unary_op_joins_the_binary_one(self, op):
        p = Tiny()
        y = p.op("tanh", p.op(op, p.input(3, 5), p.input(3, 1)))
        after = unchanged(fuse_activations, p.done(y))
        assert names(after) == [op]
        assert after.ops[0].attrs["activations"] == ["tanh"]

    def test_only_one_joins(self):
        p = Tiny()
        y = p.op("abs", p.op("tanh", p.op("add", p.input(3, 5), scalar=1.0)))
        assert names(unchanged(fuse_activations, p.done(y))) == ["add", "abs"]

    def test_integers_and_other_functions_stay_apart(self):
        p = Tiny()
        i = p.op("square", p.op("add", p.input(3, 5, dtype="int32"), scalar=1))
        y = p.op("log1p", p.op("multiply", p.input(3, 5), p.input(3, 5)))
        assert len(names(fuse_activations(p.done(i, y)))) == 4

    def test_stays_apart_where_the_precision_changes(self):
        p = Tiny("bfloat16")
        y = p.op("exp", p.op("add", p.input(3, 5), scalar=1.0, precise=True))
        assert names(unchanged(fuse_activations, p.done(y))) == ["add", "exp"]


class TestSharing:
    def test_equal_ops_are_one(self):
        p = Tiny()
        x = p.input(3, 5)
        a, b = (p.op("exp", p.op("add", x, scalar=1.0)) for _ in range(2))
        after = unchanged(share_common_subexpressions, p.done(p.op("multiply", a, b), b))
        assert names(after) == ["add", "exp", "multiply"]

    def test_other_attrs_operands_or_precision_are_not(self):
        p = Tiny()
        x = p.input(3, 5)
        ops = [p.op("add", x, scalar=1.0), p.op("add", x, scalar=2.0), p.op("add", x, x)]
        ops.append(p.op("add", x, scalar=1.0, precise=True))
        after = unchanged(share_common_subexpressions, p.done(*ops))
        assert len(after.ops) == 4

    def test_ops_with_several_results(self):
        p = Tiny()
        x = p.input(3, 8)
        options = {"k": 2, "dim": 1, "largest": True, "sorted": True, "stable": True}
        (a, _), (_, ids) = p.ops("topk", x, **options), p.ops("topk", x, **options)
        after = unchanged(
            share_common_subexpressions, p.done(a, p.op("typecast", ids, dtype="int32"))
        )
        assert names(after) == ["topk", "typecast"]
