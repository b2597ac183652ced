"""A picture a series: the end of its history, the median ahead and bands around it.

H steps ahead, C targets.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moejax.forecasting.series import Forecast
from train import figures
from train.files import replacing
from train.forecasts.frames import Forecasts
from train.forecasts.items import Item
from train.forecasts.write import KEPT

MAX_PANELS = 8
BANDS = ((0.05, 0.95), (0.25, 0.75))


def save_plots(
    folder: Path, found: Forecasts, most: int, progress: Callable[[int], Any] | None = None
) -> list[Path]:
    """plots/SERIES.png for the first `most` series."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    pairs = list(zip(found.items, found.forecasts, strict=True))[:most]
    paths = []
    for (item, forecast), name in zip(pairs, _file_names([one for one, _ in pairs]), strict=True):
        picture = figures.png(band_plot(item, forecast))
        paths.append(plots / f"{name}.png")
        with replacing(paths[-1], KEPT) as file:
            file.write(picture)
        if progress:
            progress(len(paths))
    return paths


@figures.styled
def band_plot(item: Item, forecast: Forecast) -> Figure:
    """A panel a target (at most MAX_PANELS), with the truth where it was held out."""
    shown = figures.spread(len(item.columns), MAX_PANELS)
    figure, axes = figures.grid(len(shown), 1, width=9.5, height=1.9 * len(shown) + 0.9)
    for (ax,), target in zip(axes, shown, strict=True):
        _panel(ax, item, forecast, target)
        figures.date_axis(ax, bottom=target == shown[-1], long=True)
        if len(item.columns) > 1:
            ax.set_ylabel(figures.short(item.columns[target]), parse_math=False)
    title = figures.short(item.name, 60)
    if len(shown) < len(item.columns):
        title += f" ({len(shown)} of {len(item.columns)} targets)"
    look: Any = {"fontsize": 10.5, "fontweight": "bold", "color": figures.INK}
    figure.suptitle(title, x=0.01, ha="left", parse_math=False, **look)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.06)
    figure.align_ylabels()
    figures.legend(figure, axes[0][0])
    return figure


def _panel(ax: Axes, item: Item, forecast: Forecast, target: int) -> None:
    ahead = item.ahead.to_numpy()
    steps = len(ahead)
    first = max(0, len(item.dates) - max(3 * steps, 48))
    dates, past = item.dates.to_numpy()[first:], item.history.target[target, first:]
    room = (ahead[0] - dates[-1]) / 2
    start, end = ahead[0] - room, ahead[-1] + room
    ax.axvspan(start, end, color="#f1f5f9", lw=0, zorder=0)
    ax.plot(dates, past, color=figures.FAINT, lw=1.2, label="history")
    alone = _alone(past)
    ax.plot(dates[alone], past[alone], ".", color=figures.FAINT, ms=4)
    marker = "o" if steps == 1 else ""
    for (low, high), alpha in zip(_bands(forecast), (0.18, 0.3), strict=False):
        bottom, top = (forecast.at(level)[:, target] for level in (low, high))
        label = f"{100 * (high - low):.0f} %"
        if steps == 1:
            ax.vlines(ahead, bottom, top, color=figures.BLUE, lw=7, alpha=alpha, label=label)
        else:
            ax.fill_between(ahead, bottom, top, color=figures.BLUE, alpha=alpha, lw=0, label=label)
    median = forecast.at(0.5)[:, target]
    ax.plot(ahead, median, color=figures.BLUE, lw=1.6, marker=marker, ms=4, label="median")
    if item.truth is not None:
        ax.plot(ahead, item.truth[target], color=figures.INK, lw=1.1, marker=marker, label="truth")
    ax.set_xlim(dates[0], end)
    ax.margins(y=0.08)


def _bands(forecast: Forecast) -> Sequence[tuple[float, float]]:
    """90 % and 50 % of samples; of quantiles the outermost pair and one about half as wide."""
    if forecast.samples is not None:
        return BANDS
    levels = [level for level in forecast.levels if level < 0.5]
    pairs = [
        (low, high) for low in levels for high in forecast.levels if abs(low + high - 1) < 1e-9
    ]
    if len(pairs) < 2:
        return pairs
    return (pairs[0], min(pairs[1:], key=lambda pair: abs(pair[1] - pair[0] - 0.5)))


def _alone(values: np.ndarray) -> np.ndarray:
    """Which values stand between missing ones, where a line shows nothing."""
    present = np.pad(~np.isnan(values), 1)
    return present[1:-1] & ~present[:-2] & ~present[2:]


def _file_names(items: Sequence[Item]) -> list[str]:
    """A distinct name of a file for each series."""
    names: list[str] = []
    taken: set[str] = set()
    for index, item in enumerate(items):
        name = re.sub(r"[^\w.-]+", "_", item.name).strip("._")[:80] or "series"
        while name.lower() in taken:
            name = f"{name}_{index + 1}"
        taken.add(name.lower())
        names.append(name)
    return names
