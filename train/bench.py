"""`moejax bench SUITE`: rows of measurements against baselines and targets.

A suite is a module in train/benchmarks with `measure(say) -> list[Row]`. What is compared is timed
in turns in one process, after a warm-up, and the median of the rounds counts, so that a busy
machine slows both sides alike.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from train.tables import nearest
from train.workdir import write_text

SUITES = ("mole",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. `ratio` = value / baseline; `target` is for the ratio where `of_baseline`.

    `ok` is None for a row that only informs.
    """

    name: str
    metric: str
    value: float
    unit: str
    baseline: float | None = None
    target: float | None = None
    of_baseline: bool = False

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None

    @property
    def ok(self) -> bool | None:
        if self.target is None:
            return None
        found = self.ratio if self.of_baseline else self.value
        return found is not None and found >= self.target

    def to_json(self) -> dict[str, object]:
        """The row's public keys."""
        values = asdict(self) | {"ratio": self.ratio, "ok": self.ok}
        keys = ("name", "metric", "value", "unit", "baseline", "ratio", "target", "ok")
        return {key: values[key] for key in keys}


def interleave(
    cases: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> dict[str, float]:
    """Median seconds of each case. Every round runs all of them, in turn from either end."""
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(warm_up + rounds):
        for name in names if index % 2 else names[::-1]:
            started = time.perf_counter()
            cases[name]()
            if index >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def run(args: argparse.Namespace) -> int:
    """The command: measure, print, write; exit status 1 when a target is missed."""
    console = Console()
    rows = measure(args.suite, console)
    console.print(_table(rows))
    if args.json:
        write_json(rows, args.json)
        console.print(f"Rows: {args.json}", soft_wrap=True)
    missed = [row.name for row in rows if row.ok is False]
    if missed:
        console.print(f"target missed: {', '.join(missed)}")
    return 1 if missed else 0


def measure(suite: str, console: Console | None = None) -> list[Row]:
    """The rows of a suite; ValueError for an unknown one."""
    if suite not in SUITES:
        raise ValueError(
            f"unknown suite {suite!r}.{nearest(suite, SUITES)} Suites: {', '.join(SUITES)}"
        )
    console = console or Console(quiet=True)
    module = importlib.import_module(f"train.benchmarks.{suite}")
    with console.status("preparing") as status:
        return module.measure(status.update)


def write_json(rows: list[Row], path: str | Path) -> None:
    """The rows as a JSON list."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([row.to_json() for row in rows], indent=1) + "\n")


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("name", no_wrap=True)
    for name in ("value", "baseline", "ratio", "target", "ok"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        target = (
            "" if row.target is None else f"{row.target:,g}{' of it' if row.of_baseline else ''}"
        )
        table.add_row(
            row.name,
            f"{_number(row.value)} {row.unit}",
            "" if row.baseline is None else _number(row.baseline),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            target,
            {None: "", True: "yes", False: "[red]NO[/]"}[row.ok],
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}"
