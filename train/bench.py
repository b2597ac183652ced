"""`moejax bench SUITE`: rows of measurements against baselines and targets.

A suite is a module in train/benchmarks with `measure(say) -> list[Row]`; those in DRAWING also take
a folder for their plots, those in TUNING whether to tune first. What is compared is timed in turns
in one process, after a warm-up, and the median of the rounds counts, so that a busy machine slows
both sides alike.
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

from train.machine import machine
from train.tables import nearest
from train.workdir import write_text

SUITES = ("mole", "moe", "lm", "moirai", "chronos", "gpu")
DRAWING = ("moe",)
TUNING = ("gpu",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. `ratio` = value / baseline; `target` is for the ratio where `of_baseline`.

    `paired`: the median of the rounds' own ratios, which then is the ratio. A target is a least
    value, or a largest where `at_most`. `ok` is None for a row that only informs.
    """

    name: str
    metric: str
    value: float
    unit: str
    baseline: float | None = None
    target: float | None = None
    of_baseline: bool = False
    paired: float | None = None
    at_most: bool = False

    @property
    def ratio(self) -> float | None:
        if self.paired is not None:
            return self.paired
        return self.value / self.baseline if self.baseline else None

    @property
    def ok(self) -> bool | None:
        if self.target is None:
            return None
        found = self.ratio if self.of_baseline else self.value
        if found is None:
            return False
        return found <= self.target if self.at_most else found >= self.target

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
    """The command: measure, print, write; with --strict exit status 1 when a target is missed."""
    console = Console()
    out = Path(args.out) if args.out else None
    rows = measure(args.suite, console, out, tune=args.tune)
    console.print(_table(rows))
    if out:
        write_json(rows, out / "rows.json")
        write_text(out / "table.md", markdown(args.suite, rows))
        console.print(f"Table and plots: {out}", soft_wrap=True)
    if args.json:
        write_json(rows, args.json)
        console.print(f"Rows: {args.json}", soft_wrap=True)
    missed = [row.name for row in rows if row.ok is False]
    if missed:
        console.print(f"target missed: {', '.join(missed)}")
    return 1 if missed and args.strict else 0


def measure(
    suite: str, console: Console | None = None, out: Path | None = None, *, tune: bool = False
) -> list[Row]:
    """The rows of a suite, its plots in the folder `out`; ValueError for an unknown suite, and to
    `tune` one that has nothing to tune.
    """
    if suite not in SUITES:
        raise ValueError(
            f"unknown suite {suite!r}.{nearest(suite, SUITES)} Suites: {', '.join(SUITES)}"
        )
    if tune and suite not in TUNING:
        raise ValueError(f"suite {suite!r} has nothing to tune; --tune is for {', '.join(TUNING)}")
    console = console or Console(quiet=True)
    module = importlib.import_module(f"train.benchmarks.{suite}")
    with console.status("preparing") as status:
        options = {"out": out} if suite in DRAWING else {}
        if suite in TUNING:
            options = {"tune": tune}
        return module.measure(status.update, **options)


def write_json(rows: list[Row], path: str | Path) -> None:
    """The rows as a JSON list."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([row.to_json() for row in rows], indent=1) + "\n")


def markdown(suite: str, rows: list[Row]) -> str:
    """The rows as a markdown page, with the machine and the date."""
    found = machine()
    lines = [
        f"# moejax bench {suite}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {found['processor']}, {found['cores']} cores,"
        f" jax {found['versions']['jax']}{_accelerator()}",
        "",
        "| name | what | value | baseline | ratio | target | ok |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        baseline = "" if row.baseline is None else _number(row.baseline)
        cells = (
            row.name,
            row.metric,
            f"{_number(row.value)} {row.unit}",
            baseline,
            "" if row.ratio is None else f"{row.ratio:.2f}",
            _target(row),
            {None: "", True: "yes", False: "**no**"}[row.ok],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _accelerator() -> str:
    """The device that JAX computes on, unless it is the processor."""
    import jax

    device = jax.devices()[0]
    return "" if device.platform == "cpu" else f", {device.device_kind}"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    bound = "<= " if row.at_most else ""
    return f"{bound}{row.target:,g}{' of it' if row.of_baseline else ''}"


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("name", no_wrap=True)
    for name in ("value", "baseline", "ratio", "target", "ok"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{_number(row.value)} {row.unit}",
            "" if row.baseline is None else _number(row.baseline),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            _target(row),
            {None: "", True: "yes", False: "[red]NO[/]"}[row.ok],
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.{1 if value >= 10 else 3}f}"
