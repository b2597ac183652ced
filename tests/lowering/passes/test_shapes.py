"""Passes over ops that only move data."""

from lowering.passes.broadcast import keep_broadcasts_lazy
from lowering.passes.simplify import simplify
from lowering.passes.sink import sink_reshapes
from lowering.passes.transpose import fold_transposes
from tests.lowering.passes.programs import Tiny, names, unchanged


class TestSimplify:
    def test_reshapes_in_a_row_are_one(self):
        p = Tiny()
        y = p.op("reshape", p.op("reshape", p.input(3, 10), shape=(30,)), shape=(5, 6))
        after = unchanged(simplify, p.done(y))
        assert names(after) == ["reshape"]
        assert after.ops[0].attrs["shape"] == (5, 6)

    def test_a_reshape_back_is_nothing(self):
        p = Tiny()
        x = p.input(3, 10)
        y = p.op("reshape", p.op("reshape", x, shape=(30,)), shape=(3, 10))
        after = unchanged(simplify, p.done(p.op("exp", y)))
        assert names(after) == ["exp"]
        assert after.ops[0].inputs == ("x0",)

    def test_permutes_in_a_row_are_one_or_none(self):
        p = Tiny()
        x = p.input(2, 3, 4)
        once = p.op("permute", x, dims=(2, 0, 1))
        y, z = p.op("permute", once, dims=(1, 2, 0)), p.op("permute", once, dims=(2, 1, 0))
        after = unchanged(simplify, p.done(p.op("exp", y), z))
        assert names(after) == ["permute", "exp"]
        assert after.ops[0].attrs["dims"] == (1, 0, 2)

    def test_a_permute_of_unit_axes_is_a_reshape(self):
        p = Tiny()
        y = p.op("permute", p.input(3, 1, 4), dims=(1, 0, 2))
        assert names(unchanged(simplify, p.done(y))) == ["reshape"]

    def test_what_others_read_stays(self):
        p = Tiny()
        flat = p.op("reshape", p.input(3, 10), shape=(30,))
        y = p.op("reshape", flat, shape=(10, 3))
        assert names(unchanged(simplify, p.done(flat, y))) == ["reshape", "reshape"]


class TestBroadcast:
    def test_an_expand_before_elementwise_ops_is_dropped(self):
        p = Tiny()
        wide = p.op("expand", p.input(1, 5), shape=(3, 5))
        after = unchanged(
            keep_broadcasts_lazy, p.done(p.op("add", p.op("exp", wide), p.input(3, 5)))
        )
        assert names(after) == ["exp", "add"]
        assert after.ops[0].output.shape == (1, 5)

    def test_a_result_is_expanded_after_the_elementwise_ops(self):
        p = Tiny()
        y = p.op("exp", p.op("expand", p.input(1, 5), shape=(3, 5)))
        assert names(unchanged(keep_broadcasts_lazy, p.done(y))) == ["exp", "expand"]

    def test_other_ops_get_the_full_size_once(self):
        p = Tiny()
        wide = p.op("expand", p.input(1, 5), shape=(3, 5))
        y = p.op("concat", wide, wide, dim=0)
        after = unchanged(keep_broadcasts_lazy, p.done(y, p.op("sum", wide, dim=0, keepdim=True)))
        assert names(after) == ["expand", "concat", "sum"]


class TestSink:
    def test_a_reshape_moves_behind_elementwise_ops(self):
        p = Tiny()
        flat = p.op("reshape", p.input(3, 1), shape=(3,))
        y = p.op("reshape", p.op("sqrt", p.op("square", flat)), shape=(3, 1))
        assert names(unchanged(sink_reshapes, p.done(y))) == ["square", "sqrt"]

    def test_two_operands_must_come_from_one_shape(self):
        p = Tiny()
        a, b, c = (p.input(*shape) for shape in ((3, 1), (3, 1), (1, 3)))
        a, b, c = (p.op("reshape", value, shape=(3,)) for value in (a, b, c))
        after = unchanged(sink_reshapes, p.done(p.op("add", a, b), p.op("add", a, c)))
        kept = [op for op in after.ops if op.name == "add"]
        assert [op.output.shape for op in kept] == [(3, 1), (3,)]


class TestTransposes:
    def test_a_swap_of_the_last_axes_becomes_a_flag(self):
        p = Tiny()
        a, b = p.input(2, 7, 3), p.input(2, 5, 7)
        swap = (0, 2, 1)
        y = p.op("matmul", p.op("permute", a, dims=swap), p.op("permute", b, dims=swap))
        after = unchanged(fold_transposes, p.done(y))
        assert names(after) == ["matmul"]
        assert dict(after.ops[0].attrs) == {"transpose_a": True, "transpose_b": True}

    def test_a_swap_undoes_a_flag(self):
        p = Tiny()
        y = p.op(
            "matmul", p.op("permute", p.input(3, 7), dims=(1, 0)), p.input(7, 5), transpose_a=True
        )
        after = unchanged(fold_transposes, p.done(y))
        assert names(after) == ["matmul"]
        assert after.ops[0].attrs["transpose_a"] is False

    def test_other_permutes_stay(self):
        p = Tiny()
        y = p.op("matmul", p.op("permute", p.input(3, 2, 7), dims=(1, 0, 2)), p.input(7, 5))
        assert names(unchanged(fold_transposes, p.done(y))) == ["permute", "matmul"]
