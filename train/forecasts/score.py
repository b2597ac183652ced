"""Scores of probabilistic forecasts on held-out windows, beside those of the seasonal naive.

As GluonTS defines them. CRPS: the mean over the levels 0.1 to 0.9 of the weighted quantile loss,
2 * sum |(y - q) (1[y <= q] - level)| / sum |y|, both sums over all series and steps of a set.
MASE: mean over the steps of |y - median| over the mean |x_t - x_(t - season)| of the series before
the forecast, then the mean over the series. What is missing (NaN) counts nowhere.

W held-out series, H steps ahead, Q levels, L steps of the past.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from moejax.forecasting.series import Forecaster, History

LEVELS = tuple(round(0.1 * i, 1) for i in range(1, 10))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Windows of a set to forecast: histories, what came then [W, H], and the naive error [W]."""

    name: str
    season: int
    histories: tuple[History, ...]
    future: np.ndarray
    naive_error: np.ndarray

    @property
    def horizon(self) -> int:
        """Steps ahead."""
        return self.future.shape[1]


def held_out(
    name: str,
    values: np.ndarray,
    part: tuple[int, int],
    *,
    horizon: int,
    context: int,
    season: int,
    windows: int,
) -> HeldOut:
    """`windows` forecasts of each column of [N, C], spread evenly over the rows of a part.

    A history is the last `context` rows before the forecast, each column a series of its own; the
    naive error is that of all rows before it. ValueError when the part is shorter than the horizon.
    """
    low, high = part
    if high - low < horizon:
        raise ValueError(f"{name} has {high - low} held-out rows; a forecast takes {horizon}")
    starts = np.unique(np.linspace(max(low, 1), high - horizon, windows).round().astype(int))
    steps = np.abs(values[season:] - values[:-season])
    histories, future, errors = [], [], []
    for start in starts:
        past = steps[: max(start - season, 0)]
        with np.errstate(invalid="ignore"):
            errors.append(np.nansum(past, axis=0) / np.sum(~np.isnan(past), axis=0))
        for column in range(values.shape[1]):
            history = values[max(start - context, 0) : start, column]
            histories.append(History(target=history[None], item_id=f"{name}/{column}/{start}"))
            future.append(values[start : start + horizon, column])
    return HeldOut(
        name=name,
        season=season,
        histories=tuple(histories),
        future=np.stack(future),
        naive_error=np.concatenate(errors),
    )


def joined(parts: list[HeldOut]) -> HeldOut:
    """Windows of several series of one name and season, scored together."""
    return HeldOut(
        name=parts[0].name,
        season=parts[0].season,
        histories=tuple(one for part in parts for one in part.histories),
        future=np.concatenate([part.future for part in parts]),
        naive_error=np.concatenate([part.naive_error for part in parts]),
    )


def seasonal_naive(history: np.ndarray, horizon: int, season: int) -> np.ndarray:
    """The last season [L] again and again, [H]; without a whole season the mean, as GluonTS does.

    A missing step of the season is that of the season before, as far back as it takes.
    """
    seasons = len(history) // season
    if not seasons:
        return np.full(horizon, np.nanmean(history))
    rows = history[len(history) - seasons * season :].reshape(seasons, season)
    last = rows[-1].copy()
    for row in rows[-2::-1]:
        last = np.where(np.isnan(last), row, last)
    return np.resize(last, horizon)


def weighted_quantile_loss(future_WH: np.ndarray, quantiles_QWH: np.ndarray) -> float:
    """CRPS by quantiles at LEVELS; NaN where nothing but zeros came."""
    total = np.nansum(np.abs(future_WH))
    if not total > 0:
        return float("nan")
    losses = [
        2 * np.nansum(np.abs((future_WH - one) * ((future_WH <= one) - level)))
        for level, one in zip(LEVELS, quantiles_QWH, strict=True)
    ]
    return float(np.mean(losses) / total)


def mase(future_WH: np.ndarray, median_WH: np.ndarray, naive_error_W: np.ndarray) -> float:
    """MASE; series whose past repeats exactly are left out, NaN where all do."""
    usable = (naive_error_W > 0) & ~np.isnan(future_WH).all(axis=1)
    if not usable.any():
        return float("nan")
    errors = np.nanmean(np.abs(future_WH - median_WH)[usable], axis=1)
    return float(np.mean(errors / naive_error_W[usable]))


def score_naive(held: HeldOut) -> dict[str, float]:
    """Scores of the seasonal naive, whose every quantile is its forecast."""
    point = np.stack(
        [seasonal_naive(one.target[0], held.horizon, held.season) for one in held.histories]
    )
    return scores_of(held, np.broadcast_to(point, (len(LEVELS), *point.shape)))


def score(
    held: HeldOut,
    forecaster: Forecaster,
    *,
    num_samples: int = 100,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, float]:
    """Scores of a forecaster; ValueError with the first series that it cannot forecast."""
    found = forecaster.forecast(
        held.histories, held.horizon, num_samples=num_samples, seed=seed, progress=progress
    )
    quantiles = []
    for history, one in zip(held.histories, found, strict=True):
        if isinstance(one, ValueError):
            raise ValueError(f"no forecast of {history.item_id}: {one}") from one
        quantiles.append([one.at(level)[:, 0] for level in LEVELS])
    return scores_of(held, np.swapaxes(np.array(quantiles), 0, 1))


def scores_of(held: HeldOut, quantiles_QWH: np.ndarray) -> dict[str, float]:
    """Scores of quantiles at LEVELS: CRPS, MASE of the median, share inside the outermost."""
    inside = (quantiles_QWH[0] <= held.future) & (held.future <= quantiles_QWH[-1])
    seen = ~np.isnan(held.future)
    return {
        "crps": weighted_quantile_loss(held.future, quantiles_QWH),
        "mase": mase(held.future, quantiles_QWH[len(LEVELS) // 2], held.naive_error),
        "coverage80": float(inside[seen].mean()) if seen.any() else float("nan"),
    }


def table(scores: dict[str, dict[str, dict[str, float]]], console: Any, title: str) -> None:
    """Print {set: {forecaster: scores}} with a row for each."""
    from rich.table import Table

    shown = Table(title=title)
    for name in ("set", "forecaster", "CRPS", "MASE", "in 80 % band"):
        shown.add_column(name, justify="left" if name in ("set", "forecaster") else "right")
    for name, rows in scores.items():
        for who, row in rows.items():
            cells = (f"{row[key]:.4f}" for key in ("crps", "mase"))
            shown.add_row(name, who, *cells, f"{row['coverage80']:.1%}")
        shown.add_section()
    console.print(shown)
