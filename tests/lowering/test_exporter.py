"""A program folder: complete, checked, readable, and refused when it was altered."""

import ast
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import lowering
from lowering import parity
from lowering.runtime.folder import load


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, ids):
        h = nn.Dense(32, name="up")(x) + nn.Embed(11, 32, name="table")(ids)
        return {"y": nn.Dense(3, name="down")(nn.relu(h)), "largest": jax.lax.top_k(h, 2)[0]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model, rng = Net(), np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal((6, 20)).astype(np.float32),
        "ids": rng.integers(0, 11, (6,)).astype(np.int32),
    }
    params = model.init(jax.random.key(0), **inputs)
    folder = tmp_path_factory.mktemp("programs") / "net"
    report = lowering.export(
        model.apply, params, inputs, folder, name="net", model={"size": 3}, check="mock"
    )
    return folder, report, model, params, inputs


def test_files(made):
    folder, *_ = made
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "model.py",
        "parity.json",
        "program.json",
        "report.json",
        "sample.safetensors",
        "weights.safetensors",
    }


def test_loads_as_it_was(made):
    folder, _, model, params, inputs = made
    loaded = load(folder)
    assert loaded.manifest["model"] == {"size": 3}
    for name, array in loaded.inputs().items():
        np.testing.assert_array_equal(array, inputs[name])
    expected = jax.tree.leaves(model.apply(params, **inputs))
    for found, wanted in zip(loaded.outputs(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("policy", parity.POLICIES)
def test_parity_from_the_folder(made, tmp_path, policy):
    _, _, model, params, inputs = made
    folder = tmp_path / "program"
    lowering.export(model.apply, params, inputs, folder, policy=policy, check="none")
    reports = parity.check_folder(folder, bisect=True)
    assert [report.level for report in reports] == (["P1", "P2"] if policy == "float32" else ["P2"])
    assert all(report.ok for report in reports)
    assert reports[0].ops
    assert json.loads((folder / "parity.json").read_text())["ok"] is True


def test_report(made):
    folder, report, *_ = made
    assert report == json.loads((folder / "report.json").read_text())
    assert report["chips"].keys() == {"wormhole_b0", "blackhole"}
    for chip in report["chips"].values():
        assert chip["accepted"] is True
        assert chip["device_programs"] > 0
        assert chip["host_ops"] == 0
        assert chip["flops"] > 2 * 6 * 20 * 32
        assert chip["throughput"]["estimate"] is True
    assert report["compute"]["math_fidelity"].keys() == {"HiFi3"}  # nothing in it is float32
    assert report["device_programs"] == sum(len(op["programs"]) for op in report["ops"])
    assert [row["level"] for row in report["parity"]] == ["P1", "P2"]
    assert all(row["ok"] for row in report["parity"])


def test_generated_code_is_a_module_of_the_same_calls(made):
    folder, *_ = made
    text = (folder / "model.py").read_text()
    forward = next(
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "forward"
    )
    called = [
        node.value.func.attr
        for node in forward.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func.value, "id", "") == "ttnn"
        and node.value.func.attr != "CoreGrid"
    ]
    assert called == [op.name for op in load(folder).program.ops]
    assert "Net/up" in text
    assert max(map(len, text.splitlines())) <= 100
    imported = {
        name.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported == {"sys", "numpy", "safetensors", "ttnn"}


def test_altered_folder_is_refused(made, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(made[0], folder)
    data = json.loads((folder / "program.json").read_text())
    data["ops"][0]["name"] = "relu"
    (folder / "program.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="was changed after it was written"):
        parity.check_folder(folder)


def test_other_files_are_not_overwritten(made, tmp_path):
    _, _, model, params, inputs = made
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds files but no lowered program"):
        lowering.export(model.apply, params, inputs, tmp_path, check="none")
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_a_failed_write_leaves_the_old_program(made, tmp_path, monkeypatch):
    _, _, model, params, inputs = made
    folder = tmp_path / "program"
    lowering.export(model.apply, params, inputs, folder, check="none")
    before = (folder / "manifest.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowering.save.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        lowering.export(model.apply, params, inputs, folder, check="none")
    assert (folder / "manifest.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["program"]


def test_shapes_alone_are_enough(tmp_path):
    shape = jax.ShapeDtypeStruct((4, 8), np.float32)
    report = lowering.export(
        lambda p, x: x @ p, np.ones((8, 3), np.float32), {"x": shape}, tmp_path / "p", check="none"
    )
    assert report["device_programs"] is None
    assert load(tmp_path / "p").inputs()["x"].std() > 0.5
