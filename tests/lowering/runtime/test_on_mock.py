"""The runtime with the real ttnn, on a mock device."""

import importlib.util
from pathlib import Path

import pytest

from lowering import mock
from lowering.isolate import ChildError, call
from lowering.runtime.folder import load
from lowering.save import write_tensors

RUN = "lowering.runtime.__main__:run_directory"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ttnn") is None, reason="needs ttnn (extra `device`, Linux x86-64)"
)


@pytest.fixture(autouse=True)
def _helpers(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def test_saved_program_runs(saved):
    argument = {"directory": str(saved), "golden": None}
    report = call(RUN, argument, env=mock.environment("wormhole_b0"))
    assert (report["kind"], report["arch"], report["ok"]) == ("mock", "wormhole_b0", True)
    assert len(report["outputs"]) == 2


def test_another_chip_than_the_programs_is_refused(saved):
    argument = {"directory": str(saved), "golden": None}
    with pytest.raises(ChildError, match="is for wormhole_b0, the device is blackhole; lower it"):
        call(RUN, argument, env=mock.environment("blackhole"))


def test_op_by_op_says_how_far_it_came(saved, tmp_path):
    golden, progress = tmp_path / "golden.safetensors", tmp_path / "progress"
    write_tensors(load(saved).golden(), golden)
    argument = {"directory": str(saved), "golden": str(golden), "progress": str(progress)}
    report = call(RUN, argument, env=mock.environment("wormhole_b0"))
    assert {row["value"] for row in report["ops"]} == load(saved).golden().keys()
    assert int(progress.read_text()) == len(load(saved).program.ops)


def test_pipeline_runs(saved):
    found = call("on_device:pipeline", str(saved), env=mock.environment("wormhole_b0"))
    assert found == [[[[2, 2, 8], "float32"], [[4, 2], "float32"]]] * 5


def test_runs_leave_no_memory_behind(saved):
    before, after = call("on_device:leak", str(saved), env=mock.environment("wormhole_b0"))
    assert before == after


def test_every_kind_of_tensor_goes_and_comes(tmp_path):
    rows = call("on_device:kinds", None, env=mock.environment("wormhole_b0"))
    integers = ("int32", "uint32", "uint16")
    for text, same, shape, dtype in rows:
        kind = text.split(":")[1].split("[")[0]
        sizes = text.split("[")[1].split("]")[0]
        assert same, text
        assert shape == [int(size) for size in sizes.split(",") if size]
        assert dtype == (kind if kind in integers else "float32")
    assert len(rows) > 30
