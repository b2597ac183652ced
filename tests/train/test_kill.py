"""SIGKILL at any moment, also while a checkpoint is written: the same bits in the end."""

import json
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

# Trains the debug recipe and kills itself before or after the n-th call of a function, or some
# milliseconds into it.
SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
import orbax.checkpoint
import train.checkpoint, train.loop, train.step, train.workdir
from train.api import train_recipe

OWNERS = {
    "orbax.save": (orbax.checkpoint.Checkpointer, "save"),
    "hash": (train.checkpoint, "_sha256"),
    "rename": (Path, "rename"),
    "prune": (train.checkpoint.CheckpointStore, "clean"),
    "metrics": (train.workdir.Workdir, "append_metrics"),
    "steps": (train.step.Trainer, "run"),
}

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def arm(place, when, count):
    owner, name = OWNERS[place]
    original, calls = getattr(owner, name), 0
    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            kill()
        if calls == count and when.endswith("ms"):
            threading.Timer(float(when[:-2]) / 1000, kill).start()
        result = original(*args, **kwargs)
        if calls == count and when == "after":
            kill()
        return result
    setattr(owner, name, wrapped)

if sys.argv[2] != "never":
    place, when, count = sys.argv[2].split(":")
    arm(place, when, int(count))
train_recipe("mole_debug", sys.argv[1], ["loop.steps_per_call=40", "loop.checkpoint_seconds=0"])
"""
KILLS = (
    "steps:after:2",
    "orbax.save:3ms:2",
    "hash:before:9",
    "rename:before:1",
    "rename:after:1",
    "metrics:after:1",
    "prune:before:2",
)


def start(folder, kill):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), kill],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder):
    """Run to the end; returns what was printed."""
    process = start(folder, "never")
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def final(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines][-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final line of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return final(folder)


def untimed(line):
    return {key: value for key, value in line.items() if "seconds" not in key}


def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path, whole):
    for kill in KILLS:
        process = start(tmp_path, kill)
        printed, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, (kill, printed)
    assert "Continuing from checkpoint" in finish(tmp_path)
    assert untimed(final(tmp_path)) == untimed(whole)
    left = sorted(one.name for one in (tmp_path / "checkpoints").iterdir())
    assert len(left) == 2
    assert all(name.isdigit() for name in left), left


def test_killed_from_outside_it_ends_with_the_same_bits(tmp_path, whole):
    process = start(tmp_path, "never")
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    finish(tmp_path)
    assert untimed(final(tmp_path)) == untimed(whole)
