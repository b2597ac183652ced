"""Figures of a lowered program: how far each op is from JAX, and what each op costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.figures import BLUE, FAINT, GREEN, MUTED, ORANGE, RED, grid, styled

BOUNDS = {"arithmetic": BLUE, "network": ORANGE, "dram": GREEN, "launch": FAINT}
FLOOR = 1e-9


@styled
def parity(series: Mapping[str, Sequence[Mapping[str, Any]]], threshold: float | None) -> Figure:
    """Relative L2 error of each op against JAX, log scale; one marker colour a policy or level.

    `series`: label -> rows with `op` (index), `call`, `relative_l2`, `ok`.
    """
    indices = sorted({row["op"] for rows in series.values() for row in rows})
    names = {row["op"]: row["call"] for rows in series.values() for row in rows}
    place = {index: position for position, index in enumerate(indices)}
    figure, ((ax,),) = grid(1, 1, width=11.5, height=1.2 + 0.21 * max(len(indices), 4))
    height = 0.8 / max(len(series), 1)
    for number, (label, rows) in enumerate(series.items()):
        color = (BLUE, GREEN, ORANGE, FAINT)[number % 4]
        y = [place[row["op"]] + (number - (len(series) - 1) / 2) * height for row in rows]
        x = [max(row["relative_l2"], FLOOR) for row in rows]
        colors = [color if row["ok"] else RED for row in rows]
        ax.barh(y, x, left=FLOOR / 10, height=height, color=colors, label=label)
    if threshold is not None:
        ax.axvline(threshold, color=RED, lw=1, ls=(0, (4, 3)))
        ax.annotate(
            "tolerance",
            (threshold, 0),
            xycoords=("data", "axes fraction"),
            xytext=(4, 4),
            textcoords="offset points",
            color=RED,
        )
    ax.set_xscale("log")
    ax.set_xlim(left=FLOOR / 2)
    ax.set_yticks(range(len(indices)), [f"{index:>3}  {names[index]}" for index in indices])
    ax.set_ylim(len(indices) - 0.4, -0.6)
    ax.set_xlabel("relative L2 error against JAX in float32 (below 1e-9: drawn at 1e-9)")
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside upper right", ncols=max(len(series), 1))
    return figure


@styled
def op_costs(rows: Sequence[Mapping[str, Any]], board: str) -> Figure:
    """Estimated time, bytes and FLOPs of each op: rows of `ops` of a program report."""
    labels = [f"{row['index']:>3}  {row['name']}" for row in rows]
    y = np.arange(len(rows))
    figure, ((times, moved, work),) = grid(
        1, 3, width=11.5, height=1.2 + 0.21 * max(len(rows), 4), ratios=(2, 1, 1)
    )
    for bound, color in BOUNDS.items():
        chosen = [i for i, row in enumerate(rows) if row["bound"] == bound]
        if chosen:
            times.barh(y[chosen], [rows[i]["time_us"] for i in chosen], color=color, label=bound)
    moved.barh(y, [row["bytes"] / 1024 for row in rows], color=MUTED)
    work.barh(y, [row["flops"] / 1e6 for row in rows], color=MUTED)
    times.set(title=f"estimated time on {board}, by what bounds it", xlabel="microseconds")
    moved.set(title="moved", xlabel="KiB read and written")
    work.set(title="arithmetic", xlabel="MFLOP")
    times.set_yticks(y, labels)
    times.set_ylim(len(rows) - 0.4, -0.6)
    for ax in (times, moved, work):
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside upper right", ncols=len(BOUNDS), title="bound by", title_fontsize=8)
    return figure
