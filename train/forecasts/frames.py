"""Forecasting of tables: DataFrames in and out, long format.

H steps ahead, C targets, Q levels.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moejax.forecasting.series import Forecast, Forecaster
from train.forecasts.columns import ColumnOptions
from train.forecasts.items import BadSeries, Item, SeriesTable, read_items

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """The series that have a forecast, their forecasts, and the bad series of table and model."""

    items: tuple[Item, ...]
    forecasts: tuple[Forecast, ...]
    bad: tuple[BadSeries, ...]


def forecast_frame(
    forecaster: Forecaster,
    frame: pd.DataFrame,
    prediction_length: int,
    *,
    item_column: str = "",
    timestamp_column: str = "",
    target_columns: Sequence[str] = (),
    known_covariates: Sequence[str] = (),
    past_covariates: Sequence[str] = (),
    multivariate: bool = False,
    freq: str = "",
    timestamp_format: str = "",
    quantiles: Sequence[float] = LEVELS,
    num_samples: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Forecast every series of a DataFrame, as `moejax forecast` does with a CSV.

    Returns item_id, timestamp, mean and a column a quantile; target_name too where an item has
    several targets. A bad series has no rows: a warning counts such series, and
    `result.attrs["bad_series"]` says why. ValueError where none is left, or for a bad table.
    """
    require_levels(quantiles)
    options = ColumnOptions(
        item=item_column,
        timestamp=timestamp_column,
        targets=tuple(target_columns),
        known_ahead=tuple(known_covariates),
        past_only=tuple(past_covariates),
        multivariate=multivariate,
        freq=freq,
        timestamp_format=timestamp_format,
    )
    frame = frame.reset_index(drop=True)
    frame.columns = [str(name) for name in frame.columns]
    table = read_items(frame, options, prediction_length, "the frame")
    found = forecast_items(forecaster, table, prediction_length, num_samples=num_samples, seed=seed)
    if not found.items:
        raise ValueError(describe_bad(found.bad))
    result = quantile_frame(found, quantiles, table.named_targets)
    result.attrs["bad_series"] = {one.name: one.reason for one in found.bad}
    if found.bad:
        warnings.warn(describe_bad(found.bad), UserWarning, stacklevel=2)
    return result


def forecast_items(
    forecaster: Forecaster,
    table: SeriesTable,
    prediction_length: int,
    *,
    num_samples: int,
    seed: int,
    progress: Callable[[int], Any] | None = None,
) -> Forecasts:
    """The forecasts of all series of a table that have one."""
    results: list[Forecast | ValueError] = []
    if table.items:
        results = forecaster.forecast(
            [item.history for item in table.items],
            prediction_length,
            num_samples=num_samples,
            seed=seed,
            progress=progress,
        )
    items, forecasts, bad = [], [], list(table.bad)
    for item, result in zip(table.items, results, strict=True):
        if isinstance(result, ValueError):
            bad.append(BadSeries(item.item_id, item.column, str(result)))
        else:
            items.append(item)
            forecasts.append(result)
    return Forecasts(items=tuple(items), forecasts=tuple(forecasts), bad=tuple(bad))


def quantile_frame(found: Forecasts, levels: Sequence[float], named_targets: bool) -> pd.DataFrame:
    """Rows by series, target and step: item_id, (target_name,) timestamp, mean, the levels."""
    parts: dict[str, list[Any]] = {"item_id": [], "target_name": [], "timestamp": []}
    numbers = []
    for item, forecast in zip(found.items, found.forecasts, strict=True):
        table = np.concatenate([forecast.mean[None], forecast.at_all(levels)])
        num_targets = table.shape[-1]
        parts["item_id"] += [item.item_id] * (num_targets * len(item.ahead))
        parts["target_name"].append(np.repeat(item.columns, len(item.ahead)))
        parts["timestamp"].append(np.tile(item.ahead.to_numpy(), num_targets))
        numbers.append(table.transpose(2, 1, 0).reshape(-1, len(table)))
    frame = pd.DataFrame(
        {
            "item_id": parts["item_id"],
            "target_name": np.concatenate(parts["target_name"]),
            "timestamp": np.concatenate(parts["timestamp"]),
        }
    )
    names = ["mean", *(f"{level:g}" for level in levels)]
    frame = pd.concat([frame, pd.DataFrame(np.concatenate(numbers), columns=names)], axis=1)
    return frame if named_targets else frame.drop(columns="target_name")


def describe_bad(bad: Sequence[BadSeries], most: int = 5) -> str:
    """How many series have no forecast, and why the first of them."""
    lines = [f"  {one.name}: {one.reason}" for one in bad[:most]]
    more = [f"  and {len(bad) - most} more"] if len(bad) > most else []
    return "\n".join([f"{len(bad)} series without forecast:", *lines, *more])


def require_levels(levels: Sequence[float]) -> None:
    """ValueError for levels that are no increasing numbers in (0, 1)."""
    inside = all(0 < level < 1 for level in levels)
    if not levels or not inside or list(levels) != sorted(set(levels)):
        raise ValueError(
            f"quantiles are {tuple(levels)}; they must be increasing numbers between 0 and 1"
        )
