"""The progress bar of training, with rate and time left; plain lines where there is no terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def counting_bar(
    console: Console, name: str, total: int, unit: str
) -> Iterator[Callable[[int], None]]:
    """A bar of `total` units; the function it gives hears how many are done so far."""
    bar = Progress(
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.1f} " + f"{unit}/s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(name, total=total, rate=0.0)
    started = time.perf_counter()

    def advance(done: int) -> None:
        rate = done / max(time.perf_counter() - started, 1e-9)
        bar.update(task, completed=done, rate=rate)

    with bar:
        yield advance


class EpochBar:
    """A bar over all windows of a run; `rate` is that of the current epoch, without compilation."""

    def __init__(
        self, console: Console, *, epochs: int, windows_per_epoch: int, watched: str = "mse"
    ):
        self.console, self.epochs, self.windows = console, epochs, windows_per_epoch
        self.watched = watched
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:,.0f} windows/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task(
            "train", total=epochs * windows_per_epoch, epoch=1, loss=float("nan"), rate=0.0
        )
        self._seconds, self._done = 0.0, 0

    def __enter__(self) -> "EpochBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, epoch: int, share: float) -> None:
        """Begin in epoch `epoch` (from 0) with a share of it done."""
        self._bar.update(self._task, completed=int((epoch + share) * self.windows), epoch=epoch + 1)

    def advance(self, windows: int, seconds: float, loss: float) -> None:
        """Windows trained in so many seconds, and the mean loss of the epoch so far."""
        self._seconds, self._done = self._seconds + seconds, self._done + windows
        self._bar.update(self._task, advance=windows, loss=loss, rate=self.rate())

    def rate(self) -> float:
        """Windows a second in the current epoch."""
        return self._done / self._seconds if self._seconds else 0.0

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Print a line about the epoch."""
        mark = " (best)" if line["best"] else ""
        self.console.print(
            f"epoch {line['epoch']:>3}/{self.epochs}  train {line['train_loss']:.4f}  "
            f"val {self.watched.replace('_', ' ')} {line[f'val_{self.watched}']:.4f}{mark}  "
            f"{line['windows_per_second']:,.0f} windows/s",
            highlight=False,
        )
        if line.get("dead_experts"):
            named = ", ".join(f"{expert} of MoE layer {at}" for at, expert in line["dead_experts"])
            self.console.print(f"experts that hardly work: {named}", highlight=False)
        self._seconds, self._done = 0.0, 0
        self._bar.update(self._task, epoch=line["epoch"] + 1)
