"""Check our models against recorded tensors of the published implementations.

A folder holds cases (safetensors files with recorded inputs, parameters, outputs). What system it
belongs to is found out from the content. A new system is a module with `recognises(folder)` and
`check(folder, only)`, and a row in SYSTEMS.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from train.reference import chronos, moe_lm, moirai_moe, mole
from train.reference.rows import Row

__all__ = ["SYSTEMS", "Row", "check_folder", "run"]

# in the order in which they are asked; the language models recognise any folder of models
SYSTEMS = {"mole": mole, "moirai_moe": moirai_moe, "chronos": chronos, "moe_lm": moe_lm}
PASSED, FAILED, NOTHING_CHECKED = 0, 1, 2


def find_system(path: Path) -> str:
    """The name of the system that a folder holds; ValueError when it holds none that is known."""
    if not path.is_dir():
        raise ValueError(f"{str(path)!r} is not a folder; give one with recorded cases")
    for name, system in SYSTEMS.items():
        if system.recognises(path):
            return name
    raise ValueError(
        f"{str(path)!r} holds no case of a known system ({', '.join(SYSTEMS)}); its files are"
        f" {sorted(file.name for file in path.iterdir())[:10]}"
    )


def iterate_folder(path: str | Path, only: str | None = None) -> Iterator[Row]:
    """The rows of a folder's cases, as they are checked; `only` is a glob over case names."""
    path = Path(path)
    yield from SYSTEMS[find_system(path)].check(path, only)


def check_folder(path: str | Path, only: str | None = None) -> list[Row]:
    """Check every case of a folder; ValueError when it holds no known system."""
    return list(iterate_folder(path, only))


def exit_status(rows: list[Row]) -> int:
    """0: all that was checked agrees; 1: something does not; 2: nothing was checked."""
    if any(row.ok is False for row in rows):
        return FAILED
    return PASSED if any(row.ok for row in rows) else NOTHING_CHECKED


def run(path: str | Path, only: str | None = None, json_file: str | Path | None = None) -> int:
    """Check a folder, print a row a tensor, write the rows as JSON; returns the exit status."""
    console = Console()
    if not console.is_terminal:
        console.width = 160
    rows: list[Row] = []
    try:
        with console.status("checking") as status:
            for row in iterate_folder(path, only):
                rows.append(row)
                status.update(f"{len(rows)} tensors, now in {row.case}")
    except ValueError as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True)
        return NOTHING_CHECKED
    console.print(_table(rows))
    counts = {label: sum(row.ok is ok for row in rows) for label, ok in _LABELS.items()}
    console.print(", ".join(f"{count} {label}" for label, count in counts.items()))
    if not rows:
        console.print(f"no case matches {only!r}" if only else "no case found")
    if json_file is not None:
        text = json.dumps([dataclasses.asdict(row) for row in rows], indent=1)
        Path(json_file).write_text(text + "\n", encoding="utf-8")
        console.print(f"rows written to {json_file}", soft_wrap=True)
    return exit_status(rows)


_LABELS = {"ok": True, "failed": False, "unchecked": None}
_MARKS = {True: "[green]ok[/]", False: "[bold red]FAILED[/]", None: "[yellow]unchecked[/]"}


def _table(rows: list[Row]) -> Table:
    table = Table()
    for title in ("case", "tensor", "max abs error", "tolerance", "ok", "note"):
        table.add_column(title, overflow="fold")
    for row in rows:
        error = "" if row.max_abs is None else f"{row.max_abs:.2e}"
        allowed = "" if row.tolerance is None else f"{row.tolerance:.0e}"
        allowed += f" + {row.rtol:.0e} |x|" if row.rtol else ""
        table.add_row(row.case, row.tensor, error, allowed, _MARKS[row.ok], row.note)
    return table
