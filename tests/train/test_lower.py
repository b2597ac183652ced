"""From a trained run to a program, from the command line."""

import json
import sys

import pytest

from train.cli import main


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "debug"
    settings = ["loop.epochs=1", "model.num_experts=3"]
    assert main(["train", "mole_debug", "--workdir", str(folder), "--set", *settings]) == 0
    return folder


def test_lower_and_parity(workdir, capsys):
    out = workdir / "program"
    assert main(["lower", str(workdir), "--out", str(out), "--check", "mock"]) == 0
    text = capsys.readouterr().out
    assert "device programs" in text
    assert "Next: moejax parity" in text
    report = json.loads((out / "report.json").read_text())
    wanted = ("device_programs", "ttnn_ops", "layout_conversions", "host_ops", "dram_bytes")
    assert all(report[key] is not None for key in (*wanted, "flops", "peak_l1_bytes_per_core"))
    assert any("moving average" in note for note in report["notes"])
    assert main(["parity", str(out), "--bisect"]) == 0
    assert json.loads((out / "parity.json").read_text())["ok"] is True


def test_pruned_program(workdir, capsys, tmp_path):
    arguments = ["lower", str(workdir), "--out", str(tmp_path / "p"), "--check", "none"]
    assert main([*arguments, "--prune", "1.1"]) == 0
    assert "test mse" in capsys.readouterr().out
    model = json.loads((tmp_path / "p" / "manifest.json").read_text())["model"]
    assert model["num_experts"] == 1
    assert len(model["pruned"]["experts_left_out"]) == 2
    assert model["pruned"]["test_scores"]["mse"] > 0


def test_own_function(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_model.py").write_text(
        "import numpy as np\n"
        "def example():\n"
        "    return (lambda p, x: x @ p), np.eye(8, dtype='f'), {'x': np.ones((4, 8), 'f')}\n"
        "def fft():\n"
        "    import jax.numpy as jnp\n"
        "    return (lambda p, x: jnp.abs(jnp.fft.fft(x))), (), {'x': np.ones((4, 8), 'f')}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert main(["lower", "my_model:example", "--out", "p", "--check", "none"]) == 0
    assert main(["lower", "my_model:fft", "--out", "q", "--check", "none"]) == 2
    error = capsys.readouterr().err
    assert "complex64" in error
    assert "my_model.py:6" in error
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("source", ["nowhere", "no_such_module:f", "json:nothing"])
def test_unknown_source(source, tmp_path, capsys):
    assert main(["lower", source, "--out", str(tmp_path / "p"), "--check", "none"]) == 2
    assert source.partition(":")[0] in capsys.readouterr().err


def test_parity_of_no_program(tmp_path, capsys):
    assert main(["parity", str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err
