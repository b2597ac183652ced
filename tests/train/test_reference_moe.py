"""The check of recorded routers: passes on all of them, at other sizes too, and notices damage."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from train.reference import check_folder, run

FIXTURES = Path(__file__).parent.parent / "fixtures" / "moe_lm"


@pytest.fixture(scope="module")
def rows():
    return check_folder(FIXTURES, "*.*")  # the models have no dot in their names


def test_committed_fixtures_pass(rows):
    assert [row for row in rows if not row.ok] == []
    names = {row.case for row in rows}
    assert sum(name.startswith("routing.") for name in names) == 18
    assert sum(name.startswith("capacity.") for name in names) == 8


def test_only_picks_cases():
    assert {row.case for row in check_folder(FIXTURES, "*gshard_1")} == {"routing.gshard_1"}


def write(folder: Path, tensors: dict, parameters: dict, name: str = "routing"):
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / f"{name}.safetensors"
    )
    (folder / f"{name}.json").write_text(json.dumps(parameters))


def load(name: str):
    parameters = json.loads((FIXTURES / f"{name}.json").read_text())
    return load_file(FIXTURES / f"{name}.safetensors"), parameters


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("routing", "mixtral_top2.topk_weight"),
        ("routing", "dsv3_negbias.combine"),
        ("routing", "switch_cap3.output"),
        ("routing", "switch_cap3.z_loss"),
        ("routing", "gshard_3.top1_mask"),
        ("routing", "zero_experts.output"),
        ("routing", "lb.loss_mask"),
        ("capacity", "per_sequence.position"),
        ("capacity", "expert_choice.combine"),
        ("capacity", "bias_update.bias"),
    ],
)
def test_a_changed_tensor_fails(tmp_path, file, tensor):
    tensors, parameters = load(file)
    case = tensor.split(".")[0]
    tensors = {k: v for k, v in tensors.items() if k.startswith(f"{case}.")}
    tensors[tensor] = tensors[tensor] + tensors[tensor].dtype.type(1)
    write(tmp_path, tensors, {case: parameters[case]}, file)
    assert {row.tensor for row in check_folder(tmp_path) if row.ok is False} == {
        tensor.split(".")[1]
    }
    assert run(tmp_path) == 1


def test_other_names_and_sizes(tmp_path):
    """A case of another size, under names that mean nothing, from plain loops."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(11, 5)), rng.normal(size=(7, 5))
    logits = x @ weight.T
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    index = np.argsort(-scores, axis=-1)[:, :3]
    top = np.take_along_axis(scores, index, -1)
    top = top / top.sum(-1, keepdims=True)
    combine = np.zeros_like(logits)
    np.put_along_axis(combine, index, top, -1)
    named = {"x": x, "weight": weight, "logits": logits, "combine": combine}
    named |= {"topk_weight": top, "index": index}
    tensors = {f"a.{name}": array.astype(np.float32) for name, array in named.items()}
    write(tmp_path, tensors, {"a": {"E": 7, "k": 3, "norm_topk_prob": True}}, "other")
    rows = check_folder(tmp_path)
    assert {(row.case, row.tensor, row.ok) for row in rows} == {
        ("other.a", name, True) for name in ("logits", "combine", "topk_weight", "index")
    }


def test_what_is_not_known_is_listed(tmp_path):
    tensors, parameters = load("capacity")
    kept = {k: v for k, v in tensors.items() if k.startswith("expert_choice.")}
    kept |= {"expert_choice.extra": np.zeros(2, np.float32), "stray": np.zeros(2, np.float32)}
    cases = {"expert_choice": parameters["expert_choice"], "empty": {"E": 4}}
    write(tmp_path, kept, cases, "capacity")
    unchecked = {(row.case, row.tensor) for row in check_folder(tmp_path) if row.ok is None}
    assert unchecked == {("capacity.expert_choice", "extra"), ("capacity.stray", "stray")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 9}, "top_k is 9"),
        ({"k": "two"}, "parameter 'k' is 'two'"),
        ({"score": "cosine"}, "score is 'cosine'"),
        ({"topk_method": "best"}, "strategy is 'best'"),
    ],
)
def test_impossible_parameters_are_a_failed_row(tmp_path, change, message):
    tensors, parameters = load("routing")
    kept = {k: v for k, v in tensors.items() if k.startswith("mixtral_top2.")}
    parameters = {"mixtral_top2": parameters["mixtral_top2"] | change}
    parameters["mixtral_top2"] |= {"n_group": 1, "topk_group": 1} if "topk_method" in change else {}
    write(tmp_path, kept, parameters)
    (row,) = check_folder(tmp_path)
    assert row.ok is False
    assert message in row.note
