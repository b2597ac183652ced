"""Scores of the last steps of each series, held back, beside those of the seasonal naive."""

from collections import defaultdict
from typing import Any

import numpy as np
import pandas as pd

from moejax.forecasting.series import Forecast, History
from train.forecasts.frames import Forecasts
from train.forecasts.items import Item
from train.forecasts.score import LEVELS, HeldOut, joined, score_naive, scores_of
from train.forecasts.time_axis import season_length

NAIVE = "seasonal naive, points"


def score_held_out(
    found: Forecasts, system: str, season: int = 0
) -> tuple[dict[str, dict[str, dict[str, float]]], pd.DataFrame]:
    """Scores {season: {forecaster: scores}} over all series, and a row for each series.

    `season` 0 is that of each series' frequency. What is missing of the truth counts nowhere.
    """
    rows: list[dict[str, Any]] = []
    groups: dict[int, list[tuple[HeldOut, np.ndarray]]] = defaultdict(list)
    for item, forecast in zip(found.items, found.forecasts, strict=True):
        length = season or season_length(item.offset)
        held, quantiles_QCH = _held(item, length), _quantiles(forecast)
        groups[length].append((held, quantiles_QCH))
        ours, naive = scores_of(held, quantiles_QCH), score_naive(held)
        rows.append(
            {
                "item_id": item.item_id,
                "column": item.column,
                **ours,
                **{f"naive_{name}": value for name, value in naive.items()},
            }
        )
    scores = {}
    for length, pairs in groups.items():
        held = joined([one for one, _ in pairs])
        ours = scores_of(held, np.concatenate([one for _, one in pairs], axis=1))
        scores[f"season {length}"] = {system: ours, NAIVE: score_naive(held)}
    return scores, pd.DataFrame(rows)


def _held(item: Item, season: int) -> HeldOut:
    """The targets of an item as windows, each a series of its own."""
    assert item.truth is not None
    changes = np.abs(item.history.target[:, season:] - item.history.target[:, :-season])
    known = ~np.isnan(changes)
    counts = known.sum(axis=1)
    errors = np.where(known, changes, 0).sum(axis=1) / np.maximum(counts, 1)
    return HeldOut(
        name="",
        season=season,
        histories=tuple(History(target=row[None]) for row in item.history.target),
        future=item.truth,
        naive_error=np.where(counts, errors, np.nan),
    )


def _quantiles(forecast: Forecast) -> np.ndarray:
    """[Q, C, H]."""
    return np.swapaxes(forecast.at_all(LEVELS), 1, 2)
