"""The command: outputs, exit statuses, messages; and what evaluation finds in a trained run."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest

from train import recipes
from train.api import load_run
from train.checkpoint import params_sha256
from train.cli import COMMANDS, main
from train.evaluate import forecast

FAST = ["--set", "loop.epochs=1", "loop.batch_size=128", "model.seq_len=24", "model.pred_len=12"]


def moejax(capsys, *args):
    """(exit status, stdout, stderr), each with line breaks as blanks."""
    status = main([str(one) for one in args])
    captured = capsys.readouterr()
    return status, " ".join(captured.out.split()), " ".join(captured.err.split())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "debug"
    assert main(["train", "mole_debug", "--workdir", str(folder), *FAST]) == 0
    return folder


def write_csv(path, columns, rows=400):
    rng = np.random.default_rng(0)
    dates = pd.date_range("2021-03-01", periods=rows, freq="h")
    frame = pd.DataFrame({name: rng.normal(size=rows) for name in columns})
    frame.insert(0, "date", dates)
    frame.to_csv(path, index=False)
    return path


def test_help_needs_no_jax_and_names_every_command():
    code = "import sys, train.cli as c; c.make_parser(); print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr
    assert list(COMMANDS) == [
        *("train", "eval", "generate", "forecast", "lower", "parity", "report", "check-reference"),
        *("bench", "profile"),
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"moejax {command} " in capsys.readouterr().out.split("usage:", 1)[1]


def test_train_without_recipe_lists_them(capsys):
    status, out, _ = moejax(capsys, "train")
    assert status == 0
    assert all(name in out for name in recipes.RECIPES)


def test_show_prints_the_config(capsys):
    main(["train", "mole_etth1", "--show", "--set", "loop.seed=9"])
    assert json.loads(capsys.readouterr().out)["loop"]["seed"] == 9


def test_training_again_says_that_it_is_done(capsys, trained):
    status, out, _ = moejax(capsys, "train", "mole_debug", "--workdir", trained, *FAST)
    assert status == 0
    assert "holds a finished run" in out
    assert f"Next: moejax eval {trained} --plots" in out


def test_another_config_in_the_same_workdir_is_refused(capsys, trained):
    status, _, err = moejax(capsys, "train", "mole_debug", "--workdir", trained)
    assert status == 2
    assert "holds a run of another config (loop.batch_size: 128, not 64; loop.epochs: 1" in err


def test_eval_scores_every_window_and_writes_json(capsys, trained):
    status, out, _ = moejax(capsys, "eval", trained)
    assert status == 0
    assert "Next: moejax lower" in out
    found = json.loads((trained / "eval.json").read_text())
    final = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["num_windows"] == final["test_windows"] == 8760 - 7008 - 12 + 1
    for name, value in found["scores"].items():
        np.testing.assert_allclose(value, final[f"test_{name}"], rtol=1e-6)
    assert set(found["channels"]) == {"Seattle", "San Francisco"}
    assert np.shape(found["usage"]["hour"]) == (24, 2)


def test_a_loaded_run_has_the_final_parameters(trained):
    run = load_run(trained)
    final = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert params_sha256(run.params) == final["params_sha256"]
    y, gate = forecast(run, run.dataset.starts["test"][:5], batch_size=3)
    assert (y.shape, gate.shape) == ((5, 12, 2), (5, 2, 2))
    batch = run.task.cut(jax.device_put(run.task.arrays), run.dataset.starts["test"][:5])
    expected = run.model.apply({"params": run.params}, batch["x"], batch["mark"])
    np.testing.assert_allclose(y, expected.y, rtol=1e-5, atol=1e-6)


def test_eval_of_another_file(capsys, trained, tmp_path):
    path = write_csv(tmp_path / "more.csv", ["San Francisco", "Seattle"])
    status, _, _ = moejax(capsys, "eval", trained, "--csv", path)
    found = json.loads((trained / "eval.json").read_text())
    assert (status, found["part"], found["num_windows"]) == (0, "all", 400 - 24 - 12 + 1)
    path = write_csv(tmp_path / "wide.csv", ["a", "b", "c"])
    status, _, err = moejax(capsys, "eval", trained, "--csv", path)
    assert status == 2
    assert "has 3 channels (a, b, c), but the model was trained on 2 (Seattle, San" in err
    path = write_csv(tmp_path / "other.csv", ["Seattle", "Portland"])
    status, _, err = moejax(capsys, "eval", trained, "--csv", path)
    assert status == 2
    assert "lacks columns that the model was trained on: San Francisco" in err


def test_without_data_or_network_it_trains_on_the_embedded_series(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("MOEJAX_DATA", raising=False)
    folder = tmp_path / "run"
    offline = ["--workdir", folder, *FAST, "data.allow_download=false"]
    status, out, _ = moejax(capsys, "train", "mole_etth1", *offline)
    assert status == 0
    assert "data: temperatures from vega_datasets, 8760 rows of 2 columns; windows: " in out
    assert "scores do not compare with etth1" in out
    status, out, _ = moejax(capsys, "eval", folder)
    assert status == 0
    assert "scores do not compare with etth1" in out


def test_eval_after_the_data_has_changed(capsys, tmp_path):
    path = write_csv(tmp_path / "own.csv", ["a", "b"])
    folder = tmp_path / "run"
    own = ["train", "mole_csv", "--workdir", folder, *FAST, f"data.csv={path}", "data.mode=MS"]
    assert moejax(capsys, *own)[0] == 0
    write_csv(path, ["a", "b", "c"])
    status, _, err = moejax(capsys, "eval", folder)
    assert status == 2
    assert "the data has 3 channels, but the model of" in err
    write_csv(path, ["a", "b"], rows=401)
    assert "is not the data that" in moejax(capsys, "eval", folder)[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "mole_debgu"], "unknown recipe 'mole_debgu'. Did you mean 'mole_debug'?"),
        (["train", "mole_csv"], "data.csv is empty; give your file with --set data.csv=FILE"),
        (["train", "mole_csv", "--set", "data.csv=no.csv"], "'no.csv' does not exist"),
        (["train", "mole_debug", "--set", "loop.sed=1"], "Did you mean 'loop.seed'"),
        (["train", "mole_debug", "--set", "model.seq_len=9000"], "too short for a window"),
        (["eval", "nowhere"], "nowhere is not a workdir of `moejax train`"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = moejax(capsys, *args)
    assert status == 2
    assert err.startswith(f"moejax {args[0]}: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_without_checkpoint_or_with_a_damaged_config(capsys, trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoints")
    assert "has no usable checkpoint" in moejax(capsys, "eval", folder)[2]
    (folder / "config.json").write_text("{")
    assert "config.json is damaged" in moejax(capsys, "eval", folder)[2]
