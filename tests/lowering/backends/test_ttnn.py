"""Every op of the table against the real ttnn, on mock devices of both chips."""

import importlib.util
import json

import pytest

from lowering.backends.ttnn import check_many, check_mock, report_from_json
from lowering.ir import Op, Program, Source, Value
from lowering.isolate import ChildError
from lowering.mock import BOARDS
from lowering.ops import OPS
from tests.lowering.backends.op_cases import op_programs, single

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ttnn") is None, reason="needs ttnn (extra `device`, Linux x86-64)"
)


def complaints(reports):
    return [f"{report.program}: {error}" for report in reports for error in report.errors]


@pytest.mark.parametrize("arch", BOARDS)
def test_table_agrees_with_ttnn(arch):
    programs = [*op_programs(arch).values()]
    reports = check_many(programs, arch)
    assert complaints(reports) == []
    assert {report.arch for report in reports} == {arch}
    assert {op.name for program in programs for op in program.ops} == set(OPS)


def test_report_counts_programs_and_memory():
    values = (Value("x", (32, 336, 7), "bfloat16"), Value("w", (1, 384, 336), "bfloat16"))
    heads = Value("heads", (32, 384, 7), "bfloat16", memory="l1")
    view = Value("view", (32, 4, 96, 7), "bfloat16", memory="l1")
    ops = (
        Op("matmul", ("w", "x"), (heads,), frees=("x",)),
        Op("reshape", ("heads",), (view,), {"shape": [32, 4, 96, 7]}, frees=("heads",)),
        Op("exp", ("view",), (Value("y", (32, 4, 96, 7), "bfloat16"),), frees=("view",)),
    )
    report = check_mock(Program("p", values[:1], values[1:], ops, ("y",)), "wormhole_b0")
    assert report.ok
    assert [op.programs for op in report.ops] == [("Matmul",), (), ("Unary",)]
    assert (report.device_programs, report.ttnn_ops, report.layout_conversions) == (2, 3, 0)
    assert report.host_ops == ()
    tile, tiles_in_l1 = 2048, 32 * 12
    per_core = tiles_in_l1 // 64 * tile
    assert report.peak_l1_bytes_per_core > per_core
    assert report.ops[1].l1_bytes_per_core == per_core
    assert report.dram_bytes >= (12 * 11 + 32 * 12) * tile
    assert report_from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.launches()[1] == ()


def test_rejected_op_is_named_and_the_rest_is_checked():
    x, table = Value("x", (4, 8), "float32"), Value("i", (4, 8), "int32")
    ops = (
        Op("mean", ("i",), (Value("m", (4, 1), "int32"),), {"dim": 1, "keepdim": True}),
        Op("exp", ("x",), (Value("e", (4, 8), "float32"),), source=Source(module="Model/exp")),
        Op("add", ("e", "m"), (Value("y", (4, 8), "float32"),)),
    )
    report = check_mock(Program("p", (x, table), (), ops, ("y",)), "blackhole")
    assert not report.ok
    assert len(report.errors) == 2
    assert report.errors[0].startswith("op 0 mean: ttnn.mean does not support integer inputs")
    assert report.errors[1].startswith("op 2 add")
    assert report.ops[1].ok


def test_other_result_than_stated_is_an_error():
    x = Value("x", (2, 3), "float32")
    stated = Value("y", (2, 3), "float32", layout="row_major")
    op = Op("exp", ("x",), (stated,))
    report = check_mock(Program("p", (x,), (), (op,), ("y",)), "wormhole_b0")
    assert report.errors == ("op 0 exp: gives y:float32[2,3]; expected y:float32[2,3] rm",)


def test_too_large_for_l1_is_an_error():
    x = Value("x", (8192, 8192), "bfloat16", memory="l1")
    report = check_mock(single("exp", (x,), {}), "wormhole_b0")
    assert "do not fit the device" in report.errors[0]
    assert "Out of Memory" in report.errors[0]


def test_inconsistent_program_costs_only_itself():
    good = single("exp", (Value("x", (2, 3), "float32"),), {})
    bad = good.replace(outputs=("nothing",))
    first, second = check_many([bad, good], "wormhole_b0")
    assert "'nothing' is used before it is defined" in first.errors[0]
    assert second.ok


def test_programs_leave_no_memory_behind():
    # more than half of the chip's L1 each, and every second one is rejected
    x = Value("x", (5120, 5120), "bfloat16", memory="l1")
    fine = single("slice", (x,), {"begins": [0, 0], "ends": [32, 32], "steps": [1, 1]})
    index = Value("i", (4, 8), "int32")
    op = Op("mean", ("i",), (Value("m", (4, 1), "int32"),), {"dim": 1, "keepdim": True})
    rejected = Program("p", (x, index), (), (op,), ("m",))
    reports = check_many([fine, rejected] * 3, "wormhole_b0")
    assert [report.ok for report in reports] == [True, False] * 3
    assert all("does not support integer" in report.errors[0] for report in reports[1::2])


def test_unknown_chip():
    program = single("exp", (Value("x", (2, 3), "float32"),), {})
    with pytest.raises(ValueError, match="unknown chip 'grayskull'"):
        check_mock(program, "grayskull")


def test_folder_that_cannot_be_run_says_why(tmp_path):
    from lowering.backends.ttnn import run_folder

    with pytest.raises(ChildError, match="is not a folder"):
        run_folder(tmp_path / "nothing", timeout=60)
