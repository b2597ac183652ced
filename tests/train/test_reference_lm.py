"""The check of recorded language models: passes on all of them, and notices damage."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from train.reference import check_folder, run

FIXTURES = Path(__file__).parent.parent / "fixtures"
WHOLE = ("deepseek_v3", "qwen3_moe", "llama_rope3")
FORWARD = ("deepseek_v2", "llama", "mixtral", "olmoe", "qwen2_moe")
OPTIONS = sorted(path.parent.name for path in (FIXTURES / "lm_options").glob("*/config.json"))


def copy(name: str, folder: Path, kept=lambda tensor: True, **changed) -> Path:
    """A folder that holds one model with some of its recorded tensors, some of them changed."""
    source, target = FIXTURES / "moe_lm" / name, folder / name
    target.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(source / file, target / file)
    tensors = load_file(source / "io.safetensors")
    tensors = {key: array for key, array in tensors.items() if kept(key)} | changed
    save_file(tensors, target / "io.safetensors")
    return folder


def is_full(tensor: str) -> bool:
    return tensor.startswith("full.")


@pytest.mark.parametrize("name", WHOLE)
def test_all_of_a_model_agrees(name):
    rows = check_folder(FIXTURES / "moe_lm", only=name)
    assert [row for row in rows if not row.ok] == []
    recorded = load_file(FIXTURES / "moe_lm" / name / "io.safetensors")
    inputs = {key for key in recorded if key.endswith(("_ids", "_mask", ".labels"))}
    norms = json.loads((FIXTURES / "moe_lm" / name / "meta.json").read_text())["grad_l2"]
    assert {row.tensor for row in rows} == (recorded.keys() - inputs) | {
        f"metadata grad_l2 {parameter}" for parameter, norm in norms.items() if norm is not None
    }


@pytest.mark.parametrize("name", FORWARD)
def test_forward_runs_agree(name, tmp_path):
    rows = check_folder(copy(name, tmp_path, lambda key: key.split(".")[0] in ("full", "left")))
    assert [row for row in rows if not row.ok] == []
    assert len(rows) >= 5


@pytest.mark.parametrize("name", OPTIONS)
def test_options_agree(name):
    rows = check_folder(FIXTURES / "lm_options", only=name)
    assert [row for row in rows if not row.ok] == []
    assert {"full.logits", "left.logits", "right.logits"} <= {row.tensor for row in rows}


def test_damage_is_found_and_unknown_tensors_are_listed(tmp_path):
    recorded = load_file(FIXTURES / "moe_lm" / "llama" / "io.safetensors")
    hidden = recorded["full.hidden.1"]
    hidden[2, 7, 11] += 1e-3
    extra = {"full.attention.0": np.zeros(3, np.float32), "full.hidden.1": hidden}
    copy("llama", tmp_path, is_full, **extra)
    wrong = [(row.tensor, row.ok) for row in check_folder(tmp_path) if not row.ok]
    assert sorted(wrong) == [("full.attention.0", None), ("full.hidden.1", False)]
    assert run(tmp_path) == 1


def test_folders_that_cannot_be_checked(tmp_path):
    copy("llama", tmp_path, is_full)
    path = tmp_path / "llama" / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"hidden_size": 40}))
    (row,) = check_folder(tmp_path)
    assert row.ok is False
    assert "input_layernorm.weight has (48,), the config needs (40,)" in row.note
    (tmp_path / "llama" / "io.safetensors").write_bytes(b"none")
    (row,) = check_folder(tmp_path)
    assert (row.tensor, row.ok) == ("(file)", False)
    (tmp_path / "llama" / "io.safetensors").unlink()
    (row,) = check_folder(tmp_path)
    assert row.ok is None
    assert "nothing is recorded" in row.note
