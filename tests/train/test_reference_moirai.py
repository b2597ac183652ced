"""The check of recorded runs of MOIRAI-MoE's module: all agree, and damage is noticed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from train.reference import check_folder, find_system

FIXTURES = Path(__file__).parent.parent / "fixtures" / "moirai_moe"
CASES = ("a_univariate", "a_packed", "b_multipatch", "c_student_t")
SLOW = ("a_forecast_univariate", "a_forecast_covariates", "b_forecast_patch8")
FORECASTS = ("a_forecast_onestep", *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW))


def copy(folder: Path, case: str, name: str, **changed) -> Path:
    """A folder with one case under another name, its model, and some outputs changed."""
    model = f"model_{case[0]}"
    shutil.copytree(FIXTURES / model, folder / f"model_{name.partition('_')[0]}")
    shutil.copy(FIXTURES / f"{case}.inputs.safetensors", folder / f"{name}.inputs.safetensors")
    outputs = load_file(FIXTURES / f"{case}.outputs.safetensors") | changed
    save_file(outputs, folder / f"{name}.outputs.safetensors")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_run_agrees(case):
    rows = check_folder(FIXTURES, only=case)
    assert [row for row in rows if not row.ok] == []
    recorded = load_file(FIXTURES / f"{case}.outputs.safetensors")
    assert {row.tensor for row in rows} == recorded.keys()


@pytest.mark.parametrize("case", FORECASTS)
def test_a_recorded_forecast_agrees(case):
    rows = check_folder(FIXTURES, only=case)
    assert [row for row in rows if not row.ok] == []
    recorded = load_file(FIXTURES / f"{case}.outputs.safetensors")
    assert {row.tensor for row in rows} == recorded.keys() - {"feedback"}


@pytest.mark.parametrize("name", ["convert.time_id", "step0.loc", "mean_rollout"])
def test_damage_of_a_forecast_is_noticed(tmp_path, name):
    case = "a_forecast_onestep"
    values = load_file(FIXTURES / f"{case}.outputs.safetensors")[name].copy()
    values.flat[-1] += 1
    folder = copy(tmp_path, case, "a_damaged", **{name: values})
    assert [row.tensor for row in check_folder(folder) if not row.ok] == [name]


def test_other_sizes_agree():
    """Three heads, patches of 16 and 64, one head of width 100; other components."""
    rows = check_folder(FIXTURES.with_name("moirai_moe_sizes"))
    assert [row for row in rows if not row.ok] == []
    assert len({row.case for row in rows}) == 3


def test_damage_and_unknown_tensors_are_noticed(tmp_path):
    recorded = load_file(FIXTURES / "c_student_t.outputs.safetensors")
    changed = {
        "layer0.router_experts": recorded["layer0.router_experts"][..., ::-1].copy(),
        "param.df": recorded["param.df"] + 1e-3,
        "surprise": np.zeros(2, np.float32),
    }
    rows = check_folder(copy(tmp_path, "c_student_t", "wide_one", **changed))
    assert find_system(tmp_path) == "moirai_moe"
    assert {row.tensor for row in rows if row.ok is False} == changed.keys() - {"surprise"}
    assert {row.tensor for row in rows if row.ok is None} == {"surprise"}


def test_a_case_needs_its_model_and_both_files(tmp_path):
    copy(tmp_path, "c_student_t", "c_x")
    shutil.copytree(FIXTURES / "model_c", tmp_path / "model_d")
    for path in list(tmp_path.glob("c_x.*")):
        shutil.copy(path, path.with_name(path.name.replace("c_x", "e_x")))
    (tmp_path / "c_x.inputs.safetensors").unlink()
    notes = {row.case: row.note for row in check_folder(tmp_path)}
    assert "cannot be read" in notes["c_x"]
    assert "no model fits" in notes["e_x"]
