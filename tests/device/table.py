"""The table of what the tests marked `device` measured, as a page of the documentation."""

import datetime
import importlib.metadata
import os
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
LEAST = 1e-6  # an error of which a ratio says something
SECTIONS = ("Programs", "Math fidelity", "Regions", "Ops")
COLUMNS = ("", "policy", "PCC", "relative L2", "predicted", "ratio", "max abs", "s")
HEAD = """# What the device computes, measured

ttnn {ttnn} on {device}, {date}; written by `make device`. Every row is a run of the real ttnn
against JAX (programs) or float32 arithmetic on the same rounded numbers (ops, regions). *predicted*
is the relative L2 error that the reference backend foretells in mode `device`, *ratio* the measured
one over it. A run with several results shows the worst. Seconds are the simulator's where it is
one, kernels compiled where the cache had none. *kernel not built*: one of ttnn's own kernels, which
the RISC-V compiler used with the simulator cannot build (too many live vectors, or scalar floats);
`pytest tests/device --device required -k NAME` shows its words. More: [device.md](device.md).
"""


def markdown(rows: Iterable[Row]) -> str:
    """The page, a section a kind of row."""
    sections: dict[str, list[str]] = {}
    for row in sorted(rows, key=_place):
        sections.setdefault(row["section"], []).append(_line(row))
    head = HEAD.format(
        ttnn=importlib.metadata.version("ttnn"),
        device=_device(),
        date=datetime.date.today().isoformat(),
    )
    parts = [head]
    for name, lines in sections.items():
        parts += [f"## {name}\n", _cells(COLUMNS), _cells(["---"] * len(COLUMNS)), *lines, ""]
    return "\n".join(parts)


def _place(row: Row) -> tuple[int, str, str]:
    return SECTIONS.index(row["section"]), row["name"], row["policy"]


def _line(row: Row) -> str:
    name = f"`{row['name']}`"
    if "error" in row:
        return _cells([name, row["policy"], row["error"], *[""] * (len(COLUMNS) - 3)])
    measured, predicted = row["relative_l2"], row["predicted"]
    ratio = f"{measured / predicted:.2f}" if min(measured, predicted) > LEAST else ""
    errors = [f"{measured:.1e}", f"{predicted:.1e}", ratio, f"{row['max_abs']:.1e}"]
    return _cells([name, row["policy"], f"{row['pcc']:.6f}", *errors, f"{row['seconds']:.1f}"])


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _device() -> str:
    """The device that the environment names; MOEJAX_SIMULATOR says which version of it."""
    if os.environ.get("TT_METAL_SIMULATOR"):
        return os.environ.get("MOEJAX_SIMULATOR", "the Wormhole simulator")
    return "a card"
