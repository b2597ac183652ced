"""The commands on a tiny language model: train beside another, evaluate, take the weights along."""

import json

import numpy as np
import pytest

from moejax.interop.lm.load import load_lm
from moejax.interop.lm.save import save_lm
from moejax.models.moe_lm import CausalLM
from train.api import load_run
from train.checkpoint import params_sha256
from train.cli import main
from train.lm_task import model_variables

SMALL = [
    *("model.d_model=16", "model.num_layers=1", "model.d_ff=16", "model.max_len=64"),
    *(
        "model.attention.num_heads=2",
        "model.attention.num_kv_heads=2",
        "model.attention.head_dim=8",
    ),
    *("data.seq_len=32", "data.val_share=0.2", "data.test_share=0.2"),
    *("loop.epochs=2", "loop.steps_per_epoch=4", "loop.steps_per_call=4", "loop.batch_size=4"),
]
MOE = ["model.moe.d_model=16", "model.moe.d_ff=16", "model.moe.dispatch=dense"]


def moejax(capsys, *args):
    """(exit status, stdout, stderr), each with line breaks as blanks."""
    status = main([str(one) for one in args])
    captured = capsys.readouterr()
    return status, " ".join(captured.out.split()), " ".join(captured.err.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    text = "".join(f"value_{i} = {i * i}\n" for i in range(200))
    (folder / "notes.py").write_text(text)
    settings = [*SMALL, *MOE, f"data.text={folder}/notes.py"]
    assert main(["train", "lm_text", "--workdir", str(folder / "run"), "--set", *settings]) == 0
    return folder


def test_eval_scores_and_draws(capsys, trained):
    status, out, _ = moejax(capsys, "eval", trained / "run", "--plots")
    assert status == 0
    assert "bits per byte" in out
    assert "moejax generate" in out
    found = json.loads((trained / "run/eval.json").read_text())
    final = json.loads((trained / "run/metrics.jsonl").read_text().splitlines()[-1])
    np.testing.assert_allclose(
        found["scores"]["bits_per_byte"], final["test_bits_per_byte"], rtol=1e-6
    )
    np.testing.assert_allclose(np.sum(found["usage"]["share"], axis=1), 1, rtol=1e-6)
    assert (found["num_bytes"] + 1) / 32 <= final["test_windows"]
    drawn = {path.stem for path in (trained / "run/plots").iterdir()}
    assert drawn == {"learning_curves", "expert_usage", "expert_load"}


def test_eval_of_another_text(capsys, trained, tmp_path):
    (tmp_path / "more.txt").write_text("value_1 = 1\n" * 9)
    status, out, _ = moejax(capsys, "eval", trained / "run", "--text", tmp_path / "more.txt")
    assert (status, "all, 108 bytes" in out) == (0, True)
    status, _, err = moejax(capsys, "eval", trained / "run", "--csv", "x.csv")
    assert (status, "is a language model" in err) == (2, True)
    status, _, err = moejax(capsys, "report", trained / "run")
    assert (status, "the report is about forecasts" in err) == (2, True)


def test_a_trained_model_leaves_as_a_published_checkpoint(trained):
    run = load_run(trained / "run")
    final = json.loads((trained / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert params_sha256(run.params) == final["params_sha256"]
    save_lm(run.config.model, model_variables(run.params), trained / "published")
    config, variables = load_lm(trained / "published")
    ids = np.arange(40, 72)[None]
    expected = run.model.apply(model_variables(run.params), ids).logits
    np.testing.assert_allclose(CausalLM(config).apply(variables, ids).logits, expected, atol=1e-5)


def test_two_recipes_beside_each_other(capsys, trained):
    settings = [*SMALL, *MOE, f"data.text={trained}/notes.py"]
    command = ["train", "lm_text", "--beside", "lm_small_dense", "--workdir", trained / "run"]
    status, out, _ = moejax(capsys, *command, "--set", *settings)
    assert status == 0
    assert "better on the test part: " in out
    found = json.loads((trained / "run/comparison.json").read_text())
    assert list(found["runs"]) == ["lm_text", "lm_small_dense"]
    scores = {name: row["test_bits_per_byte"] for name, row in found["runs"].items()}
    assert found["better"] == min(scores, key=lambda name: scores[name])
    assert (trained / "run/plots/comparison.png").exists()


@pytest.mark.parametrize(
    ("other", "message"), [("mole_debug", "of different kinds"), ("lm_text", "recipe twice")]
)
def test_what_does_not_compare_is_refused(capsys, other, message):
    status, _, err = moejax(capsys, "train", "lm_text", "--beside", other)
    assert (status, message in err) == (2, True)
