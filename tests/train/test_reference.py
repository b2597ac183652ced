"""The check of recorded tensors: it passes on all of them, and notices every kind of damage."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from train.reference import check_folder, run

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mole"


def test_committed_fixtures_pass():
    rows = check_folder(FIXTURES)
    assert [row for row in rows if not row.ok] == []
    assert {row.case for row in rows} == {path.stem for path in FIXTURES.glob("*.safetensors")}
    checked = {row.tensor.split(".")[0] for row in rows}
    assert checked == {"param", "out", "mid", "grad", "adam3"}
    assert sum(row.tensor == "out.y_f64" for row in rows) == 12


def test_published_data_and_trained_model_pass(shared):
    rows = check_folder(shared / "reference" / "mole", only="trained_*")
    rows += check_folder(shared / "reference" / "mole", only="data_*")
    assert [row for row in rows if not row.ok] == []
    scores = {row.tensor for row in rows if row.tensor.startswith("metadata m")}
    assert scores == {
        f"metadata {kind}_{of}" for kind in ("mse", "mae") for of in ("all", "droplast")
    }
    assert sum(row.tensor.startswith("scaler.") for row in rows) == 4


def load(name: str):
    """Tensors and metadata of a fixture."""
    with safe_open(FIXTURES / f"{name}.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    "name", ["out.y", "out.y_f64", "mid.trend", "out.gate", "param.Linear_Trend.bias"]
)
def test_a_changed_tensor_fails(tmp_path, name):
    tensors, metadata = load("mole_dlinear_t5")
    tensors[name] = tensors[name] + tensors[name].dtype.type(1e-3)
    save_file(tensors, tmp_path / "any_name.safetensors", metadata)
    failed = {row.tensor for row in check_folder(tmp_path) if row.ok is False}
    assert (name in failed) or (name.startswith("param.") and "out.y" in failed)
    assert run(tmp_path) == 1


def test_nan_and_wrong_shape_fail(tmp_path):
    tensors, metadata = load("rlinear_shared")
    tensors["out.y_f64"] = tensors["out.y_f64"] * np.nan
    tensors["mid.heads"] = np.zeros((4, 48, 7), np.float32)
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    notes = {row.tensor: row.note for row in check_folder(tmp_path) if row.ok is False}
    assert notes == {
        "out.y_f64": "not finite",
        "mid.heads": "shape (4, 1, 48, 7), recorded (4, 48, 7)",
    }


def test_unknown_tensors_are_listed_as_unchecked(tmp_path):
    tensors, metadata = load("rmlp_shared")
    save_file(
        {**tensors, "mid.surprise": np.zeros(3, np.float32)}, tmp_path / "a.safetensors", metadata
    )
    save_file({"weights": np.zeros(3, np.float32)}, tmp_path / "b.safetensors")
    unchecked = {(row.case, row.tensor) for row in check_folder(tmp_path) if row.ok is None}
    assert unchecked == {("a", "mid.surprise"), ("b", "weights")}
    assert run(tmp_path) == 0
    assert run(tmp_path, only="b") == 2


def test_a_missing_parameter_and_a_damaged_file_are_rows(tmp_path):
    tensors, metadata = load("rmlp_shared")
    del tensors["param.temporal.2.bias"]
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    (tmp_path / "b.safetensors").write_bytes(b"\x00" * 20)
    first, second = check_folder(tmp_path)
    assert (first.tensor, first.ok) == ("(case)", False)
    assert "missing ['temporal.2.bias']" in first.note
    assert (second.tensor, second.ok) == ("(file)", False)


def test_without_the_data_set_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.delenv("MOEJAX_DATA", raising=False)
    metadata = {"csv": "ETTh1.csv", "seq_len": "96", "pred_len": "96"}
    save_file({"scaler.mean": np.zeros(7)}, tmp_path / "a.safetensors", metadata)
    (row,) = check_folder(tmp_path)
    assert row.ok is None
    assert "needs ETTh1.csv" in row.note
    assert run(tmp_path) == 2


def test_folders_without_a_known_system(tmp_path):
    with pytest.raises(ValueError, match="holds no case of a known system"):
        check_folder(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        check_folder(tmp_path / "absent")
    assert run(tmp_path) == 2


def test_rows_as_json_and_table(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert run(FIXTURES, only="headdropout", json_file=out) == 0
    rows = json.loads(out.read_text())
    assert {row["tensor"] for row in rows} == {"out.gate", "out.masked"}
    assert all(row["ok"] and row["max_abs"] <= row["tolerance"] for row in rows)
    assert "2 ok, 0 failed, 0 unchecked" in capsys.readouterr().out
