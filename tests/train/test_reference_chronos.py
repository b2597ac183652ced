"""The check of recorded Chronos runs: passes on all of them, and notices damage."""

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from train.reference import check_folder

FIXTURES = Path(__file__).parent.parent / "fixtures" / "chronos"
MODELS = {path.parent.name for path in FIXTURES.glob("*/io.safetensors")}


# the gated model whose output matrix is its own has all that the tied one has
SLOW = [pytest.param("t5_gated", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", [*sorted(MODELS - {"t5_gated"}), *SLOW, "tokenizer"])
def test_recorded_runs_agree(name):
    rows = check_folder(FIXTURES, only=name)
    assert [row for row in rows if not row.ok] == []
    assert len(rows) >= 10


@pytest.mark.slow
def test_published_checkpoints_agree(shared):
    rows = check_folder(shared / "reference" / "chronos", only="dummy/*")
    assert {row.case for row in rows} >= {
        "dummy/dummy-chronos-model",
        "dummy/dummy-chronos-bolt-model",
        "dummy/dummy-chronos2-model",
    }
    assert [row for row in rows if not row.ok] == []


def test_damage_is_found_and_unknown_tensors_are_listed(tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "fork").mkdir(exist_ok=True)
        shutil.copy(FIXTURES / "moe_fork_expert_only" / file, tmp_path / "fork" / file)
    tensors = load_file(FIXTURES / "moe_fork_expert_only" / "io.safetensors")
    tensors["combined_logits"][1, 2, 3] += 1e-3
    extra = {"unknown": tensors["scale"]}
    save_file(tensors | extra, tmp_path / "fork" / "io.safetensors")
    wrong = {(row.tensor, row.ok) for row in check_folder(tmp_path) if not row.ok}
    assert wrong == {("combined_logits", False), ("unknown", None)}
