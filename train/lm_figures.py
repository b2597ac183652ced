"""Figures of a language model's training: learning curves, the experts' load by layer.

Axes: L layers with experts, E experts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train.figures import BLUE, EXPERTS, GREEN, INK, ORANGE, SHADES, grid, styled


@styled
def learning_curves(
    history: Sequence[Mapping[str, Any]], rates: Sequence[float], tokens_per_step: int
) -> Figure:
    """Validation and training loss by bytes seen, and the learning rate."""
    seen = [line["step"] * tokens_per_step / 1e6 for line in history]
    figure, ((left, right),) = grid(1, 2, width=11.5, height=3.3, ratios=(2, 1), share=False)
    train = [line["train_loss"] / np.log(2) for line in history]
    left.plot(seen, train, "o-", color=BLUE, ms=4, label="training loss / ln 2, mean so far")
    scores = [line["val_bits_per_byte"] for line in history]
    left.plot(seen, scores, "o-", color=ORANGE, ms=4, label="validation, bits per byte")
    left.annotate(
        f"{scores[-1]:.3f}",
        (seen[-1], scores[-1]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        color=ORANGE,
    )
    left.set(xlabel="million bytes seen", ylabel="bits per byte", title="loss")
    left.margins(y=0.15)
    left.legend(loc="best")
    right.plot(seen, rates, "o-", color=GREEN, ms=4)
    right.set(xlabel="million bytes seen", title="learning rate")
    right.yaxis.set_major_formatter("{x:g}")
    right.set_ylim(bottom=0)
    return figure


@styled
def expert_usage(usage: Mapping[str, Any]) -> Figure:
    """Heat map: each expert's share of its layer's choices over the even share."""
    share_LE = np.asarray(usage["share"])
    over_even = share_LE * share_LE.shape[1]
    height = 1.4 + 0.42 * len(over_even)
    figure, ((ax,),) = grid(1, 1, width=max(5.0, 2.2 + 0.55 * share_LE.shape[1]), height=height)
    top = max(2.0, float(over_even.max()))
    image = ax.imshow(over_even, aspect="auto", cmap=SHADES, vmin=0, vmax=top)
    names = [name.replace("layers_", "layer ") for name in usage["layers"]]
    ax.set_yticks(range(len(over_even)), names)
    ax.set_xticks(range(share_LE.shape[1]))
    ax.set(xlabel="expert", title=f"choices over the even share, {usage['rows']} rows")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    if share_LE.shape[1] <= 16:
        for (row, column), value in np.ndenumerate(over_even):
            color = "white" if value > 0.55 * top else INK
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
    bar = figure.colorbar(image, ax=ax, pad=0.01, fraction=0.05)
    bar.outline.set_visible(False)
    return figure


@styled
def expert_load(history: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel a layer: every expert's average load over the even share, by steps."""
    load_NLE = np.asarray([line["expert_load"] for line in history])
    layers, experts = len(load_NLE[0]), len(load_NLE[0, 0])
    load_NLE = load_NLE * experts
    steps = [line["step"] for line in history]
    columns = min(layers, 4)
    rows = -(-layers // columns)
    figure, axes = grid(rows, columns, width=11.5, height=2.4 * rows, share=False)
    for place in range(rows * columns):
        ax = axes[place // columns][place % columns]
        if place >= layers:
            ax.set_visible(False)
            continue
        for expert in range(experts):
            color = EXPERTS[expert % len(EXPERTS)]
            ax.plot(steps, load_NLE[:, place, expert], color=color, lw=1.1)
        ax.set(title=f"MoE layer {place}", xlabel="step", ylim=(0, None))
    axes[0][0].set_ylabel("load over the even share")
    return figure


@styled
def comparison(runs: Mapping[str, Sequence[Mapping[str, Any]]], watched: str) -> Figure:
    """The watched validation score of several runs, by steps and by CPU time."""
    figure, ((left, right),) = grid(1, 2, width=11.5, height=3.3, share=False)
    for number, (name, history) in enumerate(runs.items()):
        scores = [line[f"val_{watched}"] for line in history]
        minutes = [line["cpu_seconds"] / 60 for line in history]
        style: Any = {"color": EXPERTS[number % len(EXPERTS)], "ms": 4, "label": name}
        left.plot([line["step"] for line in history], scores, "o-", **style)
        right.plot(minutes, scores, "o-", **style)
    label = f"validation, {watched.replace('_', ' ')}"
    left.set(xlabel="step", ylabel=label, title="by steps")
    right.set(xlabel="CPU minutes, all cores", title="by CPU time")
    left.legend(loc="best")
    return figure
