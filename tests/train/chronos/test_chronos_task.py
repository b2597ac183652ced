"""Training Chronos: a run that learns, says who works, forecasts and goes on from a folder."""

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from moejax.forecasting.series import Forecast, History
from train import cli, recipes
from train.api import load_run, train_recipe
from train.chronos_start import load_model, save_model
from train.config import override
from train.forecasts.systems import LoadOptions, load_forecaster
from train.recipes.chronos import chronos_debug

SMALL = ["data.rows=64", "data.windows=1", "data.samples=4", "loop.steps_per_epoch=6"]
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a short run of the debug recipe."""
    workdir = tmp_path_factory.mktemp("runs") / "debug"
    train_recipe("chronos_debug", workdir, SMALL, QUIET)
    return workdir


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_and_says_who_works(run):
    first, second, final = lines(run)
    assert second["train_loss"] < first["train_loss"]
    assert np.shape(second["expert_load"]) == (1, 3)
    assert abs(sum(second["expert_load"][0]) - 1) < 1e-3
    assert {"temperatures_crps", "temperatures_naive_mase"} <= final.keys()


def test_a_workdir_forecasts_and_saves(run, tmp_path):
    save_model(run, tmp_path / "saved")
    history = History(target=np.sin(np.arange(80) / 3)[None])
    options = LoadOptions(prediction_length=16, season=24)
    found = [
        load_forecaster("chronos", str(folder), options).forecast([history], 16, num_samples=3)
        for folder in (run, tmp_path / "saved")
    ]
    assert all(isinstance(one[0], Forecast) for one in found)
    np.testing.assert_array_equal(found[0][0].samples, found[1][0].samples)


def test_it_is_evaluated_by_the_command(run, capsys):
    assert cli.main(["eval", str(run)]) == 0
    assert "seasonal_naive" in capsys.readouterr().out
    assert json.loads((run / "eval.json").read_text())["scores"]["temperatures"]["chronos"]


def test_what_train_and_report_name_next_is_a_command_that_runs(run, capsys):
    settings = [part for one in SMALL for part in ("--set", one)]
    assert cli.main(["train", "chronos_debug", "--workdir", str(run), *settings]) == 0
    assert f"Next: moejax eval {run}\n" in capsys.readouterr().out
    assert cli.main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert "holds a run of chronos_debug" in error
    assert f"`moejax eval {run}`" in error


def test_fine_tuning_begins_with_a_model(run, tmp_path):
    settings = [f"training.start={run}", "data.sources=temperatures", "data.score=temperatures"]
    settings += ["data.weights=", "data.rows=32", "data.val_rows=8", "data.windows=1"]
    settings += ["data.samples=2", "loop.epochs=1", "loop.steps_per_epoch=1"]
    train_recipe("chronos_finetune", tmp_path / "tuned", settings, QUIET)
    before, after = (load_model(folder)[1] for folder in (run, tmp_path / "tuned"))
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, after)
    assert 0 < max(jax.tree.leaves(moved)) < 1e-3


def test_it_continues_to_the_same_bits(run, tmp_path, monkeypatch):
    """Stopped behind the first epoch and begun again."""
    from train import loop

    whole = lines(run)[-1]["params_sha256"]
    calls, original = [], loop.Trainer.run

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(loop.Trainer, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        train_recipe("chronos_debug", tmp_path / "again", SMALL, QUIET)
    monkeypatch.undo()
    train_recipe("chronos_debug", tmp_path / "again", SMALL, QUIET)
    assert lines(tmp_path / "again")[-1]["params_sha256"] == whole


def test_settings_of_the_tokenizer_survive_json(run):
    settings = load_run(run, QUIET).config.model.chronos.tokenizer_kwargs
    assert settings == chronos_debug().model.chronos.tokenizer_kwargs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.context=100"], "data.context is 100, but model.chronos.context_length is 96"),
        (["training.load_decay=1"], "training.load_decay is 1"),
        (["training.period=-1"], "training.period is -1"),
        (["model.chronos.n_tokens=500"], "n_tokens is 500"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        override(recipes.build("chronos_debug"), settings)


def test_fine_tuning_needs_a_beginning(tmp_path):
    with pytest.raises(ValueError, match=r"training\.start is empty"):
        train_recipe("chronos_finetune", tmp_path / "none", [], QUIET)
