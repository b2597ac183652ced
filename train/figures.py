"""Figures of data, training and experts: plain functions from arrays to matplotlib figures.

Nothing here touches matplotlib's global state or the disk; `png` renders a figure. Axes: W windows,
S steps of context, P steps ahead, C channels, K experts.
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import matplotlib.dates as mdates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, MUTED, FAINT, LINE = "#1c2733", "#64748b", "#94a3b8", "#e2e8f0"
BLUE, ORANGE, GREEN, RED = "#2563eb", "#ea7317", "#0f9d76", "#d6336c"
EXPERTS = ("#2563eb", "#ea7317", "#0f9d76", "#8b5cf6", "#d6336c", "#0891b2", "#b7950b", "#475569")
SHADES = LinearSegmentedColormap.from_list("shades", ["#f8fafc", "#bfd3fb", "#2563eb", "#172f6e"])
LOOK: Any = {
    "font.size": 8.5,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
}
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window in original units: dates [S+P], context [S,C], truth and forecast [P,C].

    `experts` [K,P,C]: what each expert alone would have forecast. `gate` [K,C]: their weights.
    """

    dates: np.ndarray
    context: np.ndarray
    truth: np.ndarray
    forecast: np.ndarray
    experts: np.ndarray
    gate: np.ndarray

    def channels(self, indices: Sequence[int]) -> "Window":
        """The same window with these channels only."""
        arrays = {
            name: getattr(self, name)[..., list(indices)]
            for name in ("context", "truth", "forecast", "experts", "gate")
        }
        return replace(self, **arrays)


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw with the look of the house."""

    @functools.wraps(function)
    def draw(*args: Any, **options: Any) -> Figure:
        with matplotlib.rc_context(LOOK):
            return function(*args, **options)

    return draw


def png(figure: Figure, dpi: int = 144) -> bytes:
    """The figure as a PNG."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with matplotlib.rc_context(LOOK):
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


@styled
def forecasts(windows: Sequence[Window], columns: Sequence[str], *, shown: int = 120) -> Figure:
    """A row a channel, a column a window: the end of the context, the truth, the forecast."""
    names = list(columns)
    figure, axes = grid(len(names), len(windows), width=11.5, height=1.55 * len(names) + 0.75)
    for j, window in enumerate(windows):
        start = len(window.context)
        first = max(0, start - shown)
        past, ahead = window.dates[first:start], window.dates[start:]
        for i in range(len(names)):
            ax = axes[i][j]
            ax.axvspan(ahead[0], ahead[-1], color="#f1f5f9", lw=0, zorder=0)
            ax.plot(past, window.context[first:, i], color=FAINT, lw=1.1, label="context")
            ax.plot(ahead, window.truth[:, i], color=INK, lw=1.2, label="truth")
            ax.plot(ahead, window.forecast[:, i], color=BLUE, lw=1.6, label="forecast")
            ax.set_xlim(past[0], ahead[-1])
            date_axis(ax, bottom=i == len(names) - 1)
            if j == 0:
                ax.set_ylabel(short(names[i]))
        axes[0][j].set_title(f"forecast from {_stamp(ahead[0])}")
    figure.align_ylabels()
    legend(figure, axes[0][0])
    return figure


@styled
def expert_forecasts(
    windows: Sequence[Window], columns: Sequence[str], *, shown: int = 48
) -> Figure:
    """Each expert's own forecast, drawn as strong as its weight, and their mixture."""
    names = list(columns)
    figure, axes = grid(len(names), len(windows), width=11.5, height=2.0 * len(names) + 0.75)
    for j, window in enumerate(windows):
        start = len(window.context)
        first = max(0, start - shown)
        past, ahead = window.dates[first:start], window.dates[start:]
        for i in range(len(names)):
            ax = axes[i][j]
            ax.plot(past, window.context[first:, i], color=FAINT, lw=1.1)
            for k, weight in enumerate(window.gate[:, i]):
                style = {
                    "color": _expert(k),
                    "lw": 0.8 + 2.2 * weight,
                    "alpha": 0.35 + 0.6 * weight,
                }
                ax.plot(ahead, window.experts[k, :, i], **style, label=f"expert {k}")
            ax.plot(
                ahead, window.forecast[:, i], color=INK, lw=1.4, ls=(0, (4, 2)), label="mixture"
            )
            ax.set_xlim(past[0], ahead[-1])
            date_axis(ax, bottom=i == len(names) - 1)
            weights = "  ".join(f"{weight:.2f}" for weight in window.gate[:, i])
            ax.text(0.01, 0.97, f"weights {weights}", transform=ax.transAxes, va="top", color=MUTED)
            ax.margins(y=0.16)
            if j == 0:
                ax.set_ylabel(short(names[i]))
        axes[0][j].set_title(f"forecast from {_stamp(ahead[0])}")
    figure.align_ylabels()
    experts = len(windows[0].gate)
    lines = [Line2D([], [], color=_expert(k), lw=2, label=f"expert {k}") for k in range(experts)]
    lines.append(Line2D([], [], color=INK, lw=1.4, ls=(0, (4, 2)), label="mixture"))
    figure.legend(handles=lines, loc="outside upper right", ncols=len(lines))
    return figure


@styled
def learning_curves(
    history: Sequence[Mapping[str, Any]], rates: Sequence[float], best_epoch: int
) -> Figure:
    """MSE of training and validation, and the learning rate, by epoch."""
    epochs = [line["epoch"] for line in history]
    figure, ((left, right),) = grid(1, 2, width=11.5, height=3.1, ratios=(2, 1), share=False)
    losses = {"training": ("train_loss", BLUE), "validation": ("val_mse", ORANGE)}
    for label, (key, color) in losses.items():
        left.plot(epochs, [line[key] for line in history], "o-", color=color, ms=4, label=label)
    best = next((line for line in history if line["epoch"] == best_epoch), None)
    if best is not None:
        left.axvline(best_epoch, color=LINE, lw=6, zorder=0)
        left.annotate(
            f"best {best['val_mse']:.4f}",
            (best_epoch, best["val_mse"]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=ORANGE,
        )
    left.set(xlabel="epoch", ylabel="MSE (scaled space)", title="loss")
    left.margins(y=0.18)
    left.legend(loc="best")
    right.plot(epochs, rates, "o-", color=GREEN, ms=4)
    right.set(xlabel="epoch", ylabel="at the epoch's start", title="learning rate")
    right.yaxis.set_major_formatter("{x:g}")
    right.set_ylim(bottom=0)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def expert_usage(usage: Mapping[str, Any]) -> Figure:
    """Mean weight of each expert by hour, weekday and channel, as `metrics.expert_usage` gives."""
    hour, weekday, channel = (np.asarray(usage[key]) for key in ("hour", "weekday", "channel"))
    names = [short(name, 9) for name in usage["columns"]] or [str(i) for i in range(len(channel))]
    figure = _figure(11.5, 1.7 + 0.62 * hour.shape[1])
    ratios = (24, 12, max(8, min(len(names), 24)))
    axes = figure.subplots(1, 3, width_ratios=ratios)
    top = float(np.nanmax([np.nanmax(hour), np.nanmax(weekday), np.nanmax(channel)]))
    panels = (
        (hour, [str(h) for h in range(24)], "hour of the window's first step", 3),
        (weekday, WEEKDAYS, "its weekday", 1),
        (channel, names, "channel", 1 if len(names) <= 12 else 4),
    )
    for ax, (table, labels, title, every) in zip(axes, panels, strict=True):
        ax.imshow(table.T, aspect="auto", cmap=SHADES, vmin=0, vmax=top)
        ax.set_xticks(range(0, len(labels), every), labels[::every])
        if max(map(len, labels)) > 3:
            ax.tick_params(axis="x", rotation=40)
        ax.set_yticks(range(table.shape[1]), [f"expert {k}" for k in range(table.shape[1])])
        ax.set_title(title)
        ax.grid(visible=False)
        ax.tick_params(length=0)
        if ax is not axes[0]:
            ax.set_yticklabels([])
        if len(labels) <= 12:
            _numbers(ax, table.T, top)
    bar = figure.colorbar(axes[0].images[0], ax=axes, pad=0.01, fraction=0.03, aspect=14)
    bar.outline.set_visible(False)
    bar.set_label("mean weight")
    return figure


@styled
def router_weights(dates: np.ndarray, gate_WKC: np.ndarray, columns: Sequence[str]) -> Figure:
    """The router's weights over time: windows [W] in order, a panel for each channel shown."""
    picked = spread(len(columns), 4)
    figure, axes = grid(len(picked), 1, width=11.5, height=1.15 * len(picked) + 1.0)
    colors = [_expert(k) for k in range(gate_WKC.shape[1])]
    for (ax,), channel in zip(axes, picked, strict=True):
        labels = [f"expert {k}" for k in range(len(colors))]
        ax.stackplot(
            dates, gate_WKC[:, :, channel].T, colors=colors, labels=labels, lw=0, alpha=0.9
        )
        ax.set(xlim=(dates[0], dates[-1]), ylim=(0, 1), ylabel=short(columns[channel]))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        ax.grid(visible=False)
        date_axis(ax, bottom=channel == picked[-1], long=True)
    axes[-1][0].set_xlabel("first step of the window")
    legend(figure, axes[0][0])
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def grid(
    rows: int,
    columns: int,
    *,
    width: float,
    height: float,
    ratios: tuple[float, ...] | None = None,
    share: bool = True,
) -> tuple[Figure, Any]:
    """Figure and a nested list of styled axes [rows][columns]."""
    figure = _figure(width, height)
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex="col" if share else False,
        sharey="row" if share else False,
        width_ratios=ratios,
    )
    return figure, axes


def legend(figure: Figure, ax: Axes) -> None:
    """The labels of one panel above the figure."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))


def date_axis(ax: Axes, *, bottom: bool, long: bool = False) -> None:
    """Dates along x, written only below the bottom panel."""
    locator = mdates.AutoDateLocator(minticks=2, maxticks=12 if long else 6)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))
    ax.tick_params(labelbottom=bottom)
    if not bottom:
        ax.xaxis.get_offset_text().set_visible(False)


def _numbers(ax: Axes, table: np.ndarray, top: float) -> None:
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            color = "white" if value > 0.55 * top else INK
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)


def _expert(index: int) -> str:
    return EXPERTS[index % len(EXPERTS)]


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices 0..count-1, the first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def short(name: str, most: int = 16) -> str:
    """A name cut to so many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _stamp(date: np.datetime64) -> str:
    return str(date.astype("datetime64[m]")).replace("T", " ")
