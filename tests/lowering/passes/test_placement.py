"""Passes that decide dtypes, layouts, memory and lifetimes; and the order of all passes."""

import dataclasses

import numpy as np
import pytest

from lowering.backends.reference import run
from lowering.ir import Program
from lowering.passes import PASSES, run_passes
from lowering.passes.dtypes import assign_dtypes
from lowering.passes.inputs import adapt_inputs
from lowering.passes.layout import place_layouts
from lowering.passes.liveness import free_at_last_use
from lowering.passes.matmul import configure_matmuls
from lowering.passes.memory import BUDGET, peak_bytes_per_core, place_in_l1
from tests.lowering.passes.programs import Tiny, dtypes, names, unchanged


def weight_dtypes(program: Program) -> set[str]:
    return {value.dtype for value in program.weights}


class TestDtypes:
    def test_float32_changes_nothing(self):
        p = Tiny("float32")
        program = p.done(p.op("exp", p.input(3, 5)))
        assert assign_dtypes(program) is program

    def test_plain_ops_are_bfloat16(self):
        p = Tiny("bfloat16")
        after = unchanged(assign_dtypes, p.done(p.op("add", p.input(3, 5), p.weight(3, 5))))
        assert dtypes(after) == ["bfloat16"]
        assert [v.dtype for v in after.inputs] == ["bfloat16"]
        assert weight_dtypes(after) == {"bfloat16"}

    def test_a_repeated_row_is_widened_after_the_op(self):
        """ttnn itself writes wrong numbers where it widens while it repeats a row."""
        p = Tiny("bfloat16")
        total = p.op("add", p.input(3, 5), p.weight(1, 5))
        after = unchanged(assign_dtypes, p.done(p.op("exp", total, precise=True)))
        assert names(after) == ["add", "typecast", "exp"]
        assert dtypes(after) == ["bfloat16", "float32", "float32"]

    def test_a_float32_region_stays_float32_and_casts_meet_it(self):
        p = Tiny("bfloat16")
        x = p.op("exp", p.input(3, 5))
        y = p.op("exp", p.op("max", x, dim=1, keepdim=True, precise=True), precise=True)
        after = unchanged(assign_dtypes, p.done(p.op("tanh", y)))
        assert names(after) == ["exp", "typecast", "max", "exp", "typecast", "tanh"]
        assert dtypes(after) == ["bfloat16", *["float32"] * 3, "bfloat16", "bfloat16"]

    def test_ops_that_can_write_another_dtype_need_no_cast(self):
        p = Tiny("bfloat16")
        product = p.op("matmul", p.input(3, 5), p.weight(5, 6))
        y = p.op("exp", p.op("multiply", product, p.weight(3, 6), precise=True))
        after = unchanged(assign_dtypes, p.done(y))
        assert names(after) == ["matmul", "multiply", "exp"]
        assert dtypes(after) == ["float32", "bfloat16", "bfloat16"]

    def test_one_cast_serves_all_readers(self):
        p = Tiny("bfloat16")
        x = p.op("exp", p.input(3, 5))
        ys = [p.op(name, x, precise=True) for name in ("abs", "neg")]
        after = unchanged(assign_dtypes, p.done(*ys))
        assert names(after).count("typecast") == 1

    def test_only_matrices_of_plain_products_are_block_floats(self):
        p = Tiny("bfloat8_b")
        y = p.op("linear", p.input(3, 5), p.weight(5, 6), p.weight(1, 6))
        y = p.op("matmul", p.op("add", y, p.weight(3, 6)), p.weight(6, 6), precise=True)
        after = assign_dtypes(p.done(y))
        found = {after.values()[n].dtype for n in after.ops[0].inputs[1:2]}
        assert found == {"bfloat8_b"}
        assert sorted(v.dtype for v in after.weights) == [
            "bfloat16",
            "bfloat16",
            "bfloat8_b",
            "float32",
        ]

    def test_integers_stay_and_become_floats_of_the_reader(self):
        p = Tiny("bfloat16")
        i = p.op("add", p.input(3, 5, dtype="int32"), scalar=1)
        y = p.op("exp", p.op("typecast", i, dtype="float32"))
        after = assign_dtypes(p.done(y, p.op("gt", i, scalar=2, dtype="float32")))
        assert dtypes(after) == ["int32", "bfloat16", "bfloat16", "bfloat16"]

    def test_an_input_of_a_float32_region_is_uploaded_in_float32(self):
        p = Tiny("bfloat16")
        x = p.input(3, 5)
        y = p.op("sum", p.op("reshape", x, shape=(5, 3)), dim=1, keepdim=True, precise=True)
        after = assign_dtypes(p.done(y))
        assert after.inputs[0].dtype == "float32"
        assert "typecast" not in names(after)

    def test_a_weight_that_is_a_result_keeps_its_digits(self):
        p = Tiny("bfloat16")
        w = p.weight(3, 5)
        after = assign_dtypes(p.done(p.op("exp", w), w))
        assert after.values()[after.outputs[1]].dtype == "float32"


class TestLayout:
    def test_one_conversion_serves_all_readers(self):
        p = Tiny()
        index = p.op("argmax", p.input(3, 5), dim=1, keepdim=True)
        ys = [p.op("typecast", index, dtype=d) for d in ("int32", "float32")]
        after = place_layouts(p.done(*ys))
        assert names(after) == ["argmax", "to_layout", "typecast", "typecast"]
        assert after.ops[1].output.layout == "tile"

    def test_a_weight_is_stored_in_the_layout_that_is_read(self):
        p = Tiny("bfloat16")
        ids = p.op("typecast", p.input(1, 4, dtype="int32"), dtype="uint32")
        rows = p.op("embedding", ids, p.weight(11, 8), layout="tile")
        after = place_layouts(p.done(rows))
        assert names(after) == ["typecast", "to_layout", "embedding"]
        assert [v.layout for v in after.weights] == ["row_major"]


class TestInputs:
    def test_indices_arrive_unsigned_and_in_rows(self):
        p = Tiny("bfloat16")
        ids = p.op("typecast", p.input(2, 4, dtype="int32"), dtype="uint32")
        program = place_layouts(p.done(p.op("embedding", ids, p.weight(11, 8), layout="tile")))
        after = unchanged(adapt_inputs, program)
        assert names(after) == ["embedding"]
        assert (after.inputs[0].dtype, after.inputs[0].layout) == ("uint32", "row_major")

    def test_what_others_read_arrives_as_it_is(self):
        p = Tiny()
        x = p.input(2, 4, dtype="int32")
        casts = [p.op("typecast", x, dtype="uint32"), p.op("add", x, scalar=1)]
        program = p.done(*casts)
        assert adapt_inputs(program) == program

    def test_floats_are_converted_on_the_device(self):
        p = Tiny()
        program = p.done(p.op("typecast", p.input(2, 4, dtype="int32"), dtype="float32"))
        assert adapt_inputs(program) == program


class TestMemory:
    def test_a_small_program_lies_in_l1_but_for_its_results(self):
        p = Tiny()
        x, w = p.input(3, 5), p.weight(3, 5)
        after = place_in_l1(p.done(p.op("exp", p.op("add", x, w))))
        values = after.values()
        assert {values[n].memory for n in ("x0", "w", "add")} == {"l1"}
        assert values[after.outputs[0]].memory == "dram"

    def test_a_large_program_lies_in_dram(self):
        p = Tiny()
        program = p.done(p.op("exp", p.input(4096, 4096)))
        assert peak_bytes_per_core(program) > BUDGET["wormhole_b0"]
        assert place_in_l1(program) == program

    def test_all_results_of_an_op_lie_together(self):
        p = Tiny()
        values, ids = p.ops("sort", p.input(3, 5), dim=1, descending=False, stable=True)
        program = p.done(values, p.op("typecast", ids, dtype="int32"))
        after = place_in_l1(program)
        assert {value.memory for value in after.ops[0].outputs} == {"dram"}

    def test_a_mask_of_attention_lies_in_dram(self):
        p = Tiny("bfloat16")
        q, mask = p.input(1, 2, 32, 32), p.op("exp", p.input(1, 1, 32, 30))
        mask = p.op("pad", mask, padding=((0, 0), (0, 0), (0, 0), (0, 2)), value=-1e9)
        y = p.op("scaled_dot_product_attention", q, q, q, mask, is_causal=False, scale=1.0)
        after = place_in_l1(p.done(p.op("exp", y)))
        places = {op.name: op.output.memory for op in after.ops[:-1]}
        assert places == {"exp": "dram", "pad": "dram", "scaled_dot_product_attention": "l1"}

    def test_padding_inside_the_tiles_stays_where_it_is(self):
        p = Tiny()
        x = p.input(3, 5)
        padded = [p.op("pad", x, padding=((0, 0), (0, n)), value=0.0) for n in (2, 60)]
        after = place_in_l1(p.done(*padded))
        assert [op.output.memory for op in after.ops] == ["l1", "dram"]

    def test_the_peak_counts_what_is_live_at_once(self):
        p = Tiny()
        x = p.input(32, 32)
        for _ in range(5):
            x = p.op("exp", x)
        one = 32 * 32 * 4
        assert peak_bytes_per_core(p.done(x)) == 3 * one


class TestMatmulPrograms:
    def test_a_weight_on_the_left_of_a_batch_gets_a_config(self):
        p = Tiny()
        y = p.op("matmul", p.weight(1, 96, 64), p.input(4, 64, 7))
        config = configure_matmuls(p.done(y)).ops[0].attrs["program_config"]
        assert config["mcast_in0"] is False
        assert config["in0_block_w"] * 1 <= 64 // 32

    @pytest.mark.parametrize("shapes", [((5, 7), (7, 3)), ((2, 5, 7), (2, 7, 3))])
    def test_others_are_left_to_ttnn(self, shapes):
        p = Tiny()
        program = p.done(p.op("matmul", *(p.input(*shape) for shape in shapes)))
        assert configure_matmuls(program) == program


def test_values_are_freed_at_their_last_use():
    p = Tiny()
    x = p.input(3, 5)
    a = p.op("exp", x)
    b = p.op("add", a, p.weight(3, 5))
    values, unread = p.ops("sort", b, dim=1, descending=False, stable=True)
    after = free_at_last_use(p.done(p.op("multiply", a, values), b))
    assert [op.frees for op in after.ops] == [(), (), (unread.name,), (a.name, values.name)]


def test_the_pipeline_computes_what_the_rules_said():
    p = Tiny("bfloat16")
    x = p.input(3, 10)
    h = p.op("relu", p.op("add", p.op("matmul", x, p.weight(10, 6)), p.weight(6)))
    total = p.op("reshape", p.op("sum", h, dim=1, keepdim=True), shape=(3,))
    y = p.op("divide", h, p.op("expand", p.op("reshape", total, shape=(3, 1)), shape=(3, 6)))
    program = p.done(y)
    after = run_passes(program)
    assert names(after) == ["linear", "sum", "divide"]
    inputs = {"x0": np.ones((3, 10), np.float32)}
    np.testing.assert_allclose(run(after, inputs)[0], run(program, inputs)[0], rtol=1e-5)


def test_an_inconsistent_pass_is_named():
    def break_shapes(program: Program) -> Program:
        op = program.ops[0]
        wrong = dataclasses.replace(op.output, shape=(1,))
        return program.replace(ops=(op.replace(outputs=(wrong,)),))

    p = Tiny()
    program = p.done(p.op("exp", p.input(3, 5)))
    with pytest.raises(AssertionError, match="inconsistent program after 'broken'"):
        run_passes(program, (*PASSES[:2], ("broken", break_shapes)))
