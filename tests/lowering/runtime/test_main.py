"""The command that runs a folder's sample."""

import json

import numpy as np

from lowering.runtime.__main__ import main


def test_sample_is_run_and_compared(fake, saved, tmp_path, capsys):
    assert main([str(saved), "--bisect", "--json", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["ok"]
    assert [row["output"] for row in report["outputs"]] == ["output.0", "output.1"]
    assert [row["value"] for row in report["ops"]] == ["scaled"]
    assert report["ops"][0]["source"] == "Model/multiply"
    assert "card wormhole_b0: ok" in capsys.readouterr().out


def test_other_results_fail(fake, saved, small, tools, capsys):
    sample = {f"input.{name}": array for name, array in small.batch(0).items()}
    sample |= {f"output.{i}": -a for i, a in enumerate(small.expected(small.batch(0)))}
    tools.write_tensors(saved / "sample.safetensors", sample)
    tools.seal(saved)
    assert main([str(saved)]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out


def test_manifest_may_state_the_tolerance(fake, saved, small, tools):
    rng = np.random.default_rng(0)
    sample = {f"input.{name}": array for name, array in small.batch(0).items()}
    for i, a in enumerate(small.expected(small.batch(0))):
        sample[f"output.{i}"] = (a + rng.normal(size=a.shape) * 0.2).astype(np.float32)
    tools.write_tensors(saved / "sample.safetensors", sample)
    tools.seal(saved)
    assert main([str(saved)]) == 1
    tools.seal(saved, tolerances={"pcc": 0.5})
    assert main([str(saved)]) == 0


def test_unreadable_folder(fake, tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err
