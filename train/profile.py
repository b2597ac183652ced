"""`moejax profile SUITE`: reports of where time and memory go.

A suite is a module in train/profiles with `measure(say) -> list[Section]`. A section is a part of
the model taken apart: steps that are compiled and timed alone, and the whole.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from train.benchmarks.pairs import clock, temporaries
from train.machine import machine
from train.tables import nearest
from train.workdir import write_text

SUITES = ("moe",)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One compiled function: median seconds, and what XLA says of it.

    flops, bytes_accessed: of one run; XLA counts the body of a loop once, so they are None where
    the function loops. temporaries, arguments, outputs: bytes. None: the platform doesn't say.
    """

    name: str
    seconds: float
    flops: float | None
    bytes_accessed: float | None
    temporaries: int | None
    arguments: int | None
    outputs: int | None


@dataclass(frozen=True, kw_only=True)
class Section:
    """A report: `steps` add up to about `whole`; each `extra` stands alone, with its own note."""

    name: str
    title: str
    setting: str
    whole: Cost
    steps: tuple[Cost, ...]
    extra: tuple[Cost, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A function to be compiled for these arguments."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def run(args: argparse.Namespace) -> int:
    """The command: measure, write the reports, say where they are."""
    console = Console()
    sections = measure(args.suite, console)
    paths = write(sections, Path(args.out))
    for section in sections:
        console.print(_bottleneck(section), soft_wrap=True)
    console.print(f"Reports: {', '.join(str(path) for path in paths)}", soft_wrap=True)
    return 0


def measure(suite: str, console: Console | None = None) -> list[Section]:
    """The sections of a suite; ValueError for an unknown one."""
    if suite not in SUITES:
        raise ValueError(
            f"unknown suite {suite!r}.{nearest(suite, SUITES)} Suites: {', '.join(SUITES)}"
        )
    console = console or Console(quiet=True)
    module = importlib.import_module(f"train.profiles.{suite}")
    with console.status("preparing") as status:
        return module.measure(status.update)


def cost_all(steps: Sequence[Step], *, rounds: int) -> list[Cost]:
    """Costs of functions that are timed in turns."""
    compiled = [jax.jit(step.function).lower(*step.arguments).compile() for step in steps]
    runs = [
        lambda one=one, step=step: one(*step.arguments)
        for one, step in zip(compiled, steps, strict=True)
    ]
    for call in runs:
        clock(call)
    rows = [[clock(call)[0] for call in runs] for _ in range(rounds)]
    medians = [statistics.median(times) for times in zip(*rows, strict=True)]
    return [
        _cost(step.name, seconds, one)
        for step, seconds, one in zip(steps, medians, compiled, strict=True)
    ]


def _cost(name: str, seconds: float, compiled: Any) -> Cost:
    analysis = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    loops = " while(" in compiled.as_text()
    return Cost(
        name=name,
        seconds=seconds,
        flops=None if loops else analysis.get("flops"),
        bytes_accessed=None if loops else analysis.get("bytes accessed"),
        temporaries=temporaries(compiled),
        arguments=None if memory is None else int(memory.argument_size_in_bytes),
        outputs=None if memory is None else int(memory.output_size_in_bytes),
    )


def write(sections: Sequence[Section], out: Path) -> list[Path]:
    """A report for each section, and one for all."""
    out.mkdir(parents=True, exist_ok=True)
    pages = {f"{one.name}_profiling_report.md": page([one], one.title) for one in sections}
    pages["consolidated_profiling_report.md"] = page(sections, "Where time and memory go")
    for name, text in pages.items():
        write_text(out / name, text)
    return [out / name for name in pages]


def page(sections: Sequence[Section], title: str) -> str:
    """Sections as markdown."""
    found = machine()
    device = jax.devices()[0]
    lines = [
        f"# {title}",
        "",
        f"{time.strftime('%Y-%m-%d')}, {found['processor']}, {found['cores']} cores,"
        f" {device.device_kind} ({device.platform}), jax {found['versions']['jax']}.",
        "",
        "Times are medians of functions that are compiled alone and run in turns. FLOPs, bytes and"
        " memory are XLA's own figures; FLOPs and bytes are left out of functions with loops,"
        " whose body XLA counts once.",
    ]
    if len(sections) > 1:
        lines += ["", *(f"- {_bottleneck(section)}" for section in sections)]
    for section in sections:
        heading = [f"## {section.title}", ""] if len(sections) > 1 else []
        lines += ["", *heading, f"{section.setting}.", "", *_table(section)]
        if len(sections) == 1:
            lines += ["", _bottleneck(section)]
        for note in section.notes:
            lines += ["", note]
    return "\n".join(lines) + "\n"


def _bottleneck(section: Section) -> str:
    slowest = max(section.steps, key=lambda cost: cost.seconds)
    total = sum(cost.seconds for cost in section.steps)
    largest = max(section.steps, key=lambda cost: cost.temporaries or 0)
    memory = ""
    if largest.temporaries:
        memory = f"; most temporaries: {largest.name}, {_mib(largest.temporaries)} MiB"
    return (
        f"{section.title}: {section.whole.seconds * 1e3:.2f} ms whole, {total * 1e3:.2f} ms in"
        f" steps; slowest: {slowest.name}, {slowest.seconds / total:.0%} of the steps{memory}."
    )


def _table(section: Section) -> list[str]:
    lines = [
        "| part | ms | share | GFLOP | GFLOP/s | MiB read or written | temporaries MiB |"
        " arguments MiB | outputs MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = sum(cost.seconds for cost in section.steps)
    for cost in (*section.steps, section.whole, *section.extra):
        share = f"{cost.seconds / total:.1%}" if cost in section.steps else ""
        flops = rate = ""
        if cost.flops:
            flops, rate = f"{cost.flops / 1e9:.3f}", f"{cost.flops / cost.seconds / 1e9:.1f}"
        sizes = (cost.bytes_accessed, cost.temporaries, cost.arguments, cost.outputs)
        cells = (cost.name, f"{cost.seconds * 1e3:.3f}", share, flops, rate, *map(_mib, sizes))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mib(size: float | None) -> str:
    return "" if size is None else f"{size / 2**20:.1f}"
