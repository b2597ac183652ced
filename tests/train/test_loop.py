"""The loop on a tiny task: early stopping, guard, resuming, damage, full disk, locks."""

import dataclasses
import errno
import functools
import io
import json
import os
import shutil

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from train.checkpoint import CheckpointStore, params_sha256
from train.config import LoopConfig
from train.errors import TrainError
from train.loop import train
from train.optim import OptimConfig, make_optimizer
from train.step import Scorer, Trainer, init_state
from train.workdir import Workdir

pytestmark = pytest.mark.usefixtures("compile_once")
LOOP = LoopConfig(
    epochs=4, batch_size=16, patience=4, steps_per_call=3, checkpoint_seconds=0.0, seed=3
)
OPTIM = functools.partial(make_optimizer, OptimConfig(learning_rate=1e-2))


def run(task, folder, loop=LOOP, optim=OPTIM, identity=None):
    """Train in a folder; returns the result and what was printed."""
    out = io.StringIO()
    workdir = Workdir(folder)
    with workdir.held():
        console = Console(file=out, width=200)
        return train(
            task, optim, loop, workdir, identity or {"config": "1"}, console
        ), out.getvalue()


@pytest.fixture(scope="module")
def whole(tiny_task, tmp_path_factory):
    """An uninterrupted run of the tiny task: its folder and final line."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(tiny_task(), folder)[0].final


class StoppedError(Exception):
    pass


def run_until(task, folder, monkeypatch, calls, loop=LOOP):
    """Train until that many calls of training steps were made, then fail as a crash would."""
    original, made = Trainer.run, 0

    def stop(self, state, indices):
        nonlocal made
        made += 1
        if made > calls:
            raise StoppedError
        return original(self, state, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stop)
        with pytest.raises(StoppedError):
            run(task, folder, loop)


def without_times(lines):
    return [
        {key: value for key, value in line.items() if "seconds" not in key and "per_s" not in key}
        for line in lines
    ]


def test_training_improves_and_writes_its_metrics(tiny_task, tmp_path):
    result, printed = run(tiny_task(), tmp_path / "a")
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [line.get("epoch") for line in lines] == [1, 2, 3, 4, None]
    assert lines[-1] == result.final
    assert lines[-1]["final"] is True
    assert lines[-1]["params_sha256"] == params_sha256(result.params)
    assert lines[-1]["test_mse"] < 0.5 * lines[0]["val_mse"]
    assert lines[3]["step"] == 4 * (150 // 16)
    assert "epoch   4/4" in printed


def test_the_same_seed_gives_the_same_bits(tiny_task, tmp_path, whole):
    task = tiny_task()
    seed = dataclasses.replace(LOOP, seed=4)
    again, other = run(task, tmp_path / "a")[0], run(task, tmp_path / "b", seed)[0]
    assert again.final["params_sha256"] == whole[1]["params_sha256"]
    assert other.final["params_sha256"] != whole[1]["params_sha256"]


@pytest.mark.parametrize("calls", [1, 2, 4, 8])
def test_an_interrupted_run_continues_to_the_same_bits(
    tiny_task, tmp_path, monkeypatch, whole, calls
):
    task = tiny_task()
    run_until(task, tmp_path / "cut", monkeypatch, calls)
    rest, printed = run(task, tmp_path / "cut")
    assert f"Continuing from checkpoint {calls}" in printed
    assert rest.final["params_sha256"] == whole[1]["params_sha256"]
    lines = [Workdir(folder).read_metrics() for folder in (whole[0], tmp_path / "cut")]
    assert without_times(lines[0]) == without_times(lines[1])


def test_best_parameters_are_restored_and_patience_stops(tiny_task, tmp_path):
    loop = dataclasses.replace(LOOP, epochs=12, patience=2)
    result, _ = run(tiny_task(), tmp_path, loop, lambda **_: optax.sgd(0.9))
    lines = Workdir(tmp_path).read_metrics()
    epochs = lines[:-1]
    best = min(epochs, key=lambda line: line["val_mse"])
    assert result.final["best_epoch"] == best["epoch"]
    assert result.final["epochs"] == min(12, best["epoch"] + 2)
    np.testing.assert_allclose(result.final["val_mse"], best["val_mse"], rtol=1e-6)


def test_a_non_finite_step_is_skipped_and_counted(tiny_task, tmp_path):
    task = tiny_task(bad_rows=(40,))
    result, _ = run(task, tmp_path)
    assert 0 < result.final["skipped_steps"] < result.final["steps"]
    assert np.isfinite(result.final["test_mse"])


def test_the_guard_gives_what_leaving_the_step_out_gives(tiny_task):
    task = tiny_task(bad_rows=(40,))
    good = np.arange(50, 66, dtype=np.int32)
    bad = np.arange(30, 46, dtype=np.int32)
    optimizer = OPTIM(steps_per_epoch=10, epochs=1)
    trainer = Trainer(task, optimizer)
    state = init_state(task, optimizer, 0)
    after, metrics = trainer.run(state, np.stack([good, bad]))
    alone, _ = trainer.run(state, good[None])
    assert (int(after.step), int(after.skipped), int(after.worst_streak)) == (2, 1, 1)
    assert np.isnan(metrics["loss"][1])
    for one, other in zip(
        jax.tree.leaves((after.params, after.opt_state)),
        jax.tree.leaves((alone.params, alone.opt_state)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_too_many_non_finite_steps_stop_with_advice(tiny_task, tmp_path):
    task = tiny_task(bad_rows=tuple(range(0, 300, 5)))
    with pytest.raises(TrainError, match=r"steps in a row .*epoch 1.*Lower optim.learning_rate"):
        run(task, tmp_path, dataclasses.replace(LOOP, max_skipped=4))


def test_scores_cover_all_windows_whatever_the_batch(tiny_task):
    task = tiny_task()
    params = task.init(jax.random.key(0))
    scores = [Scorer(task, batch_size=size).scores(params, "test") for size in (1, 7, 1000)]
    errors = task.errors(params, task.cut(task.arrays, task.indices["test"]))
    for one in scores:
        np.testing.assert_allclose(one["mse"], np.mean(errors["squared"]), rtol=1e-5)
        assert one.keys() == {"mse", "mae", "mse_original", "mae_original", "smape", "mase"}


@pytest.mark.parametrize("name", ["arrays/_METADATA", "host.json", "manifest.json", "data"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tiny_task, tmp_path, monkeypatch, whole, name
):
    task = tiny_task()
    run_until(task, tmp_path / "cut", monkeypatch, 5)
    newest = tmp_path / "cut/checkpoints/00000005"
    path = newest / name
    if name == "data":
        path = max(
            (one for one in newest.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size
        )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    rest, printed = run(task, tmp_path / "cut")
    assert "00000005 is damaged" in printed
    assert "Continuing from checkpoint 4" in printed
    assert rest.final["params_sha256"] == whole[1]["params_sha256"]
    assert (tmp_path / "cut/checkpoints/damaged-00000005").is_dir()


def test_without_any_usable_checkpoint_training_starts_over(
    tiny_task, tmp_path, monkeypatch, whole
):
    task = tiny_task()
    run_until(task, tmp_path / "cut", monkeypatch, 3)
    for path in (tmp_path / "cut/checkpoints").glob("*/host.json"):
        path.unlink()
    rest, printed = run(task, tmp_path / "cut")
    assert printed.count("is damaged") == 2
    assert "starts from the beginning" in printed
    assert rest.final["params_sha256"] == whole[1]["params_sha256"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device"),
    ],
)
def test_a_full_disk_is_explained_and_loses_nothing(tiny_task, tmp_path, monkeypatch, whole, error):
    task = tiny_task()
    original, saves = CheckpointStore._write, 0

    def fail(self, folder, arrays, host):
        nonlocal saves
        saves += 1
        original(self, folder, arrays, host)
        if saves == 3:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_write", fail)
        with pytest.raises(
            TrainError, match=r"no space left.*checkpoint 2 is complete.*same command"
        ):
            run(task, tmp_path / "cut")
    assert [one.name for one in (tmp_path / "cut/checkpoints").iterdir()] == [
        "00000001",
        "00000002",
    ]
    assert run(task, tmp_path / "cut")[0].final["params_sha256"] == whole[1]["params_sha256"]


def test_space_is_looked_for_before_writing(tiny_task, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(TrainError, match=r"no space left on the disk of .*there was none"):
        run(tiny_task(), tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_of_another_run_is_refused(tiny_task, tmp_path, monkeypatch):
    task = tiny_task()
    run_until(task, tmp_path, monkeypatch, 3)
    with pytest.raises(ValueError, match="made with another config"):
        run(task, tmp_path, identity={"config": "2"})
    with pytest.raises(ValueError, match="made with another data"):
        run(dataclasses.replace(task, fingerprint="other"), tmp_path)


def test_only_the_last_two_checkpoints_are_kept(tiny_task, tmp_path):
    run(tiny_task(), tmp_path)
    left = sorted(one.name for one in (tmp_path / "checkpoints").iterdir())
    assert left == ["00000011", "00000012"]


def test_a_workdir_in_use_names_the_process(tmp_path):
    message = f"is in use by pid {os.getpid()};"
    with Workdir(tmp_path).held(), pytest.raises(TrainError, match=message):
        Workdir(tmp_path).held().__enter__()
    with Workdir(tmp_path).held():
        pass


def test_a_workdir_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match="cannot be used"), Workdir(tmp_path / "file/run").held():
        pass


def test_state_of_the_iterator_and_of_early_stopping_is_saved(tiny_task, tmp_path, monkeypatch):
    run_until(tiny_task(), tmp_path, monkeypatch, 7)
    host = CheckpointStore(tmp_path / "checkpoints").load_host(7)
    assert host["iterator"] == {"next_index": 7}
    assert host["progress"]["epoch"] == 2
    assert host["progress"]["call"] == 1
    assert host["progress"]["best_epoch"] == 2
