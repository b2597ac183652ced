"""P4 without a device: what is made of its answers."""

from dataclasses import asdict

import jax.numpy as jnp
import numpy as np
import pytest

import lowering
from lowering import device_run, parity
from lowering.backends.ttnn import RefusedOpError
from lowering.isolate import ChildError
from lowering.runtime.folder import load
from lowering.runtime.metrics import compare

X = np.random.default_rng(0).standard_normal((4, 40)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    def function(kernel, x):
        return jnp.exp(x @ kernel).sum(axis=1)

    lowering.export(function, X.T.copy(), {"x": X}, tmp_path / "p", check="none")
    return tmp_path / "p"


def answers(monkeypatch, run):
    monkeypatch.setattr(device_run, "run_folder", run)


def test_predictions_stand_beside_what_was_measured(folder, monkeypatch):
    def run(directory, golden=None):
        program, output = load(directory).program, load(directory).outputs()[0]
        worse = asdict(compare(output * 1.001, output))
        ops = [
            {"op": i, "name": op.name, "value": v.name, "source": "", **worse}
            for i, op in enumerate(program.ops)
            for v in op.outputs
            if v.name in golden
        ]
        outputs = [{"output": "output.0", **worse}]
        return {"kind": "simulator", "arch": "wormhole_b0", "outputs": outputs, "ops": ops}

    answers(monkeypatch, run)
    (report,) = parity.check_folder(folder, backend="ttnn", bisect=True)
    assert (report.ok, report.backend) == (True, "ttnn on simulator wormhole_b0")
    assert len(report.ops) == len(load(folder).program.ops)  # those without JAX's numbers too
    (row,) = report.outputs
    (predicted,) = parity.check_folder(folder)[-1].outputs
    assert row.predicted == predicted.metrics.relative_l2
    assert "(predicted: relative L2" in str(report)


def test_an_op_that_ends_the_run_is_named_and_saved_alone(folder, monkeypatch):
    def run(directory, golden=None):
        raise RefusedOpError(1, "UnimplementedFunctionality: " + "x" * 2000)

    answers(monkeypatch, run)
    name = load(folder).program.ops[1].name
    with pytest.raises(ValueError, match=f"op 1 {name} .* ends the run: Unimplemented") as caught:
        parity.check_folder(folder, backend="ttnn", bisect=True)
    assert len(str(caught.value)) < 1000
    alone = load(folder / "refused")
    assert [op.name for op in alone.program.ops] == [name]
    assert parity.check_folder(folder / "refused")[0].ok


def test_without_bisect_the_error_says_how_to_find_the_op(folder, monkeypatch):
    def run(directory, golden=None):
        assert golden is None
        raise ChildError("the child process ended with signal 6")

    answers(monkeypatch, run)
    with pytest.raises(ValueError, match="signal 6\nwith --bisect the op is named"):
        parity.check_folder(folder, backend="ttnn")
    assert not (folder / "refused").exists()


def test_a_mock_proves_no_numbers(folder, monkeypatch):
    answers(monkeypatch, lambda directory, golden: {"kind": "mock", "outputs": [], "ops": []})
    with pytest.raises(ValueError, match="mock device, which computes no numbers"):
        parity.check_folder(folder, backend="ttnn")
