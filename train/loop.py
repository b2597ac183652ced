"""The training loop: epochs, validation, early stopping, checkpoints, resuming.

It knows tasks (train/task.py), not models. Killed at any moment and started again on the same
workdir it ends with the same parameters, bit for bit, as if it had never stopped.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console

from train.checkpoint import CheckpointStore, params_sha256
from train.config import LoopConfig
from train.data import batches
from train.errors import TrainError
from train.progress import EpochBar
from train.step import Scorer, Trainer, TrainState, init_state, placed, state_shapes, trained
from train.task import Task
from train.workdir import Workdir


@dataclass
class Progress:
    """The loop's own numbers, as saved in a checkpoint beside the arrays."""

    epoch: int = 0
    call: int = 0
    calls_made: int = 0
    best_score: float = math.inf
    best_epoch: int = 0
    epochs_without_gain: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of a run: the best parameters, and the last line of its metrics."""

    params: Any
    final: dict[str, Any]


class Run:
    """One run in one workdir; `train` is the way in."""

    def __init__(
        self,
        task: Task,
        optimizer: optax.GradientTransformation,
        loop: LoopConfig,
        workdir: Workdir,
        identity: dict[str, Any],
        console: Console,
    ):
        self.task, self.loop, self.workdir, self.console = task, loop, workdir, console
        self.identity = {**identity, "data": task.fingerprint}
        self.trainer = Trainer(task, optimizer, unroll=loop.unroll, accumulate=loop.accumulate)
        self.scorer = Scorer(task, batch_size=loop.eval_batch_size)
        self.store = CheckpointStore(workdir.checkpoints, say=console.print)
        self.iterator = make_iterator(task, loop)
        self.progress = Progress()
        self._init = functools.partial(init_state, task, optimizer, loop.seed)
        self.state: TrainState = state_shapes(task, optimizer)
        self.best = self.state.params
        self.steps_per_epoch = steps_per_epoch(task, loop)
        self.calls_per_epoch = -(-self.steps_per_epoch // loop.steps_per_call)
        self.saved_at = self.timed_at = time.monotonic()
        self.cpu_at = time.process_time()

    def resume(self) -> None:
        """Continue from the newest usable checkpoint, if any; ValueError if of another run."""
        self.store.clean()
        found = self.store.load_latest({"state": self.state, "best": self.best}, owner=True)
        if found is None:
            if self.store.damaged():
                self.console.print("No usable checkpoint: training starts from the beginning")
            self.state = self._init()
            self.best = self.state.params
            self.workdir.write_metrics([])
            return
        other = [
            key for key, value in self.identity.items() if found.host["identity"].get(key) != value
        ]
        if other:
            raise ValueError(
                f"the checkpoint in {self.workdir.path} was made with another "
                f"{' and '.join(other)}; restore it, or use another --workdir"
            )
        self.state, self.best = (placed(self.task, found.arrays[key]) for key in ("state", "best"))
        self.progress = Progress(**found.host["progress"])
        self.iterator.set_state(found.host["iterator"])
        self.workdir.write_metrics(self.progress.history)
        where = f"epoch {self.progress.epoch + 1}, step {int(self.state.step)}"
        self.console.print(f"Continuing from checkpoint {found.number}: {where}")

    def finished(self) -> bool:
        """Whether the last epoch was reached, or patience ran out."""
        progress = self.progress
        return (
            progress.epoch >= self.loop.epochs or progress.epochs_without_gain >= self.loop.patience
        )

    def run_epoch(self, bar: EpochBar) -> None:
        """Train to the end of the current epoch, validate, save."""
        while self.progress.call < self.calls_per_epoch:
            indices = self.task.indices["train"][next(self.iterator)]
            self.trainer.prepare(self.state, indices.shape)
            started = time.perf_counter()
            self.state, metrics = self.trainer.run(self.state, indices)
            seconds = time.perf_counter() - started
            self._count(metrics["loss"], seconds)
            bar.advance(indices.size, seconds, self._mean_loss())
            unfinished = self.progress.call < self.calls_per_epoch
            if unfinished and time.monotonic() - self.saved_at >= self.loop.checkpoint_seconds:
                self._save()
        self._end_epoch(bar)
        self._save()

    def finish(self) -> Result:
        """Score the best parameters on all test windows and write the final line."""
        progress = self.progress
        line: dict[str, Any] = {
            "final": True,
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "steps": int(self.state.step),
            "skipped_steps": int(self.state.skipped),
            "parameters": num_trained(self.task, self.best),
            "train_seconds": round(progress.seconds, 3),
            **self._times(),
        }
        for part in ("val", "test"):
            scores = self.scorer.scores(self.best, part)
            line |= {f"{part}_{name}": value for name, value in scores.items()}
            line[f"{part}_windows"] = len(self.task.indices[part])
        line |= self.task.closing(self.best)
        line["params_sha256"] = params_sha256(self.best)
        self.workdir.append_metrics(line)
        return Result(params=self.best, final=line)

    def _count(self, losses: np.ndarray, seconds: float) -> None:
        progress = self.progress
        good = np.isfinite(losses)
        progress.loss_sum += float(np.sum(losses[good], dtype=np.float64))
        progress.loss_steps += int(good.sum())
        progress.call += 1
        progress.calls_made += 1
        progress.seconds += seconds
        worst = int(self.state.worst_streak)
        if worst >= self.loop.max_skipped:
            raise TrainError(
                f"{worst} training steps in a row gave numbers that are not finite (epoch "
                f"{progress.epoch + 1}, up to step {int(self.state.step)}), the limit of "
                "loop.max_skipped. Lower optim.learning_rate or set optim.clip_norm=1; the last "
                "checkpoint is kept"
            )

    def _mean_loss(self) -> float:
        return self.progress.loss_sum / max(self.progress.loss_steps, 1)

    def _end_epoch(self, bar: EpochBar) -> None:
        progress = self.progress
        scores = self.scorer.scores(self.state.params, "val")
        progress.epoch += 1
        score = scores[self.task.watched]
        better = score < progress.best_score
        if better:
            self.best = self.state.params
            progress.best_score, progress.best_epoch = score, progress.epoch
        progress.epochs_without_gain = 0 if better else progress.epochs_without_gain + 1
        line = {
            "epoch": progress.epoch,
            "step": int(self.state.step),
            "train_loss": self._mean_loss(),
            **{f"val_{name}": value for name, value in scores.items()},
            "best": better,
            **self.task.report(self.state.params),
            "skipped_steps": int(self.state.skipped),
            "windows_per_second": round(bar.rate(), 1),
            "seconds": round(progress.seconds, 3),
            **self._times(),
        }
        progress.history.append(line)
        self.workdir.append_metrics(line)
        bar.end_epoch(line)
        progress.call, progress.loss_sum, progress.loss_steps = 0, 0.0, 0

    def _times(self) -> dict[str, float]:
        """Seconds since training began, scoring included: on the clock, and of all cores."""
        progress, wall, cpu = self.progress, time.monotonic(), time.process_time()
        progress.wall_seconds += wall - self.timed_at
        progress.cpu_seconds += cpu - self.cpu_at
        self.timed_at, self.cpu_at = wall, cpu
        return {
            "wall_seconds": round(progress.wall_seconds, 3),
            "cpu_seconds": round(progress.cpu_seconds, 3),
        }

    def _save(self) -> None:
        self._times()
        host = {
            "identity": self.identity,
            "progress": vars(self.progress),
            "iterator": self.iterator.get_state(),
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
        }
        arrays = {"state": self.state, "best": self.best}
        self.store.save(self.progress.calls_made, arrays, host)
        self.saved_at = time.monotonic()


def num_trained(task: Task, params: Any) -> int:
    """How many numbers the optimiser changes."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(trained(task, params)))


def steps_per_epoch(task: Task, loop: LoopConfig) -> int:
    """Training steps from one validation to the next."""
    return loop.steps_per_epoch or len(task.indices["train"]) // loop.batch_size


def make_iterator(task: Task, loop: LoopConfig) -> Any:
    """The grain iterator over batches of training windows."""
    return batches(
        len(task.indices["train"]),
        batch_size=loop.batch_size,
        steps_per_call=loop.steps_per_call,
        steps_per_epoch=loop.steps_per_epoch,
        seed=loop.seed,
    )


def train(
    task: Task,
    make_optimizer: Callable[..., optax.GradientTransformation],
    loop: LoopConfig,
    workdir: Workdir,
    identity: dict[str, Any],
    console: Console | None = None,
) -> Result:
    """Train a task in a workdir that this process holds, resuming what is there.

    `make_optimizer(steps_per_epoch=, epochs=)` builds the optax chain; `identity` (JSON values)
    must be the same in every process that continues the run. TrainError and ValueError as the
    parts say.
    """
    console = console or Console()
    task = replace(task, arrays=jax.device_put(task.arrays))
    steps = max(steps_per_epoch(task, loop), 1)
    optimizer = make_optimizer(steps_per_epoch=steps, epochs=loop.epochs)
    run = Run(task, optimizer, loop, workdir, identity, console)
    run.resume()
    windows = run.steps_per_epoch * loop.batch_size
    sizes = {"epochs": loop.epochs, "windows_per_epoch": windows}
    with EpochBar(console, **sizes, watched=task.watched) as bar:
        bar.start(run.progress.epoch, run.progress.call / max(run.calls_per_epoch, 1))
        while not run.finished():
            run.run_epoch(bar)
    return run.finish()
