"""Figures of the MoE benchmark: use of the experts, throughput, drops, entropy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from moejax.moe.usage import Usage
from train.benchmarks.moe_grid import Grid, Point, Speeds, Usages
from train.figures import BLUE, EXPERTS, FAINT, INK, LINE, ORANGE, grid, png, styled


def write(out: Path, sizes: Grid, speeds: Speeds, usages: Usages) -> list[Path]:
    """All figures of a run, as PNG files in a folder."""
    figures = {"throughput": throughput(sizes, speeds)}
    figures["drops"] = drops(sizes, usages)
    figures["entropy"] = entropy(sizes, usages)
    for top_k in sizes.choices:
        for factor in sizes.factors:
            name = f"expert_utilization_k{top_k}_cf{factor}"
            figures[name] = utilization(sizes, usages, top_k, factor)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        path.write_bytes(png(figure))
    return paths


@styled
def utilization(sizes: Grid, usages: Usages, top_k: int, factor: float) -> Figure:
    """Kept and dropped choices of each expert over the mean load, and the capacity."""
    batch = max(sizes.batches)
    figure, axes = grid(1, len(sizes.experts), width=11.5, height=3.2, share=False)
    for ax, experts in zip(axes[0], sizes.experts, strict=True):
        found = usages[_point(sizes, batch=batch, experts=experts, top_k=top_k, factor=factor)]
        mean = found.wanted.sum() / experts
        kept, lost = found.kept / mean, (found.wanted - found.kept) / mean
        at = np.arange(experts)
        ax.bar(at, kept, color=BLUE, width=0.78, label="served")
        ax.bar(at, lost, bottom=kept, color=ORANGE, width=0.78, label="dropped")
        ax.axhline(factor, color=INK, lw=1.2, ls=(0, (4, 2)), label="capacity")
        ax.axhline(1, color=FAINT, lw=1, label="even use")
        ax.set(xlabel="expert", title=f"E {experts}: {100 * found.drop_rate:.1f} % dropped")
        ax.set_xticks(at[:: max(1, experts // 8)])
        ax.set_ylim(0, 1.12 * max(factor, float(np.max(kept + lost))))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(visible=False, axis="x")
    axes[0][0].set_ylabel("choices over the mean load")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    figure.suptitle(
        f"k {top_k}, capacity factor {factor:g}, {batch} x {sizes.length} tokens",
        x=0.01,
        ha="left",
        color=INK,
        fontsize=10,
    )
    return figure


@styled
def throughput(sizes: Grid, speeds: Speeds) -> Figure:
    """Tokens a second by batch, forward; the dense MLP on as many rows in grey."""
    figure, axes = grid(1, len(sizes.choices), width=11.5, height=3.4, share=False)
    tokens = np.array(sizes.batches) * sizes.length / 1e3
    for ax, top_k in zip(axes[0], sizes.choices, strict=True):
        dense = []
        for color, experts in zip(EXPERTS, sizes.experts, strict=False):
            points = [
                _point(sizes, batch=batch, experts=experts, top_k=top_k) for batch in sizes.batches
            ]
            pairs = [speeds[point, "forward"] for point in points]
            seconds = np.array([pair.seconds for pair in pairs])
            ax.plot(tokens, tokens / seconds, "o-", color=color, ms=4, label=f"layer, E {experts}")
            dense.append(tokens / np.array([pair.baseline_seconds for pair in pairs]))
        ax.plot(
            tokens, np.median(dense, axis=0), "o--", color=FAINT, ms=4, label="dense MLP, same work"
        )
        ax.set(xlabel="tokens", title=f"k {top_k}, forward, training mode")
        ax.set_xticks(tokens, [f"{1e3 * value:.0f}" for value in tokens])
        ax.set_ylim(bottom=0)
    axes[0][0].set_ylabel("thousand tokens/s")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


@styled
def drops(sizes: Grid, usages: Usages) -> Figure:
    """Share of dropped choices by capacity factor."""
    figure, axes = grid(1, len(sizes.choices), width=11.5, height=3.2)
    factors, batch = sorted(sizes.factors), max(sizes.batches)
    for ax, top_k in zip(axes[0], sizes.choices, strict=True):
        for color, experts in zip(EXPERTS, sizes.experts, strict=False):
            for jitter in sizes.jitters:
                points = [
                    _point(
                        sizes,
                        batch=batch,
                        experts=experts,
                        top_k=top_k,
                        factor=factor,
                        jitter=jitter,
                    )
                    for factor in factors
                ]
                share = [usages[point].drop_rate for point in points]
                ls = "-" if jitter == sizes.jitters[0] else ":"
                label = f"E {experts}, jitter {jitter:g}"
                ax.plot(factors, share, "o", ls=ls, color=color, ms=4, label=label)
        ax.set(xlabel="capacity factor", title=f"k {top_k}, {batch} x {sizes.length} tokens")
        ax.set_xticks(factors)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0][0].set_ylabel("choices dropped")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


@styled
def entropy(sizes: Grid, usages: Usages) -> Figure:
    """Entropy of the loads and of a token's probabilities, over log E: 1 is even."""
    figure, axes = grid(1, 2, width=11.5, height=3.2, share=False)
    batch, at = max(sizes.batches), np.arange(len(sizes.experts))
    panels: Mapping[str, str] = {
        "load_entropy": "loads of the experts",
        "router_entropy": "a token's probabilities, mean",
    }
    series = [(top_k, jitter) for top_k in sizes.choices for jitter in sizes.jitters]
    width = 0.8 / len(series)
    for ax, (name, title) in zip(axes[0], panels.items(), strict=True):
        for index, (top_k, jitter) in enumerate(series):
            found: list[Usage] = [
                usages[_point(sizes, batch=batch, experts=experts, top_k=top_k, jitter=jitter)]
                for experts in sizes.experts
            ]
            values = [getattr(one, name) for one in found]
            place = at + (index - (len(series) - 1) / 2) * width
            label = f"k {top_k}, jitter {jitter:g}"
            ax.bar(place, values, width=0.9 * width, color=EXPERTS[index], label=label)
        ax.axhline(1, color=LINE, lw=1)
        ax.set_xticks(at, [f"E {experts}" for experts in sizes.experts])
        ax.set(title=title)
        ax.grid(visible=False, axis="x")
    axes[0][0].set_ylabel("entropy over log E")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


def _point(sizes: Grid, **changes: Any) -> Point:
    """A point with the grid's first factor and jitter unless changed."""
    usual: dict[str, Any] = {"factor": sizes.factors[0], "jitter": sizes.jitters[0]}
    return Point(**usual | changes)
