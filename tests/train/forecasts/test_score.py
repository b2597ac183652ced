"""Scores of forecasts: GluonTS's own numbers, definitions by hand, missing values."""

import numpy as np
import pandas as pd
import pytest

from moejax.forecasting.series import Forecast
from train.forecasts.score import (
    LEVELS,
    held_out,
    mase,
    score,
    score_naive,
    seasonal_naive,
    weighted_quantile_loss,
)


def values(rows=200, columns=3, missing=0):
    rng = np.random.default_rng(0)
    found = np.sin(np.arange(rows)[:, None] / 4 + np.arange(columns)) * 5 + rng.normal(
        3, 1, (rows, columns)
    )
    found.ravel()[rng.integers(0, found.size, missing)] = np.nan
    return found


class Known:
    """A forecaster whose samples are noise around the last value; one bad series if asked for."""

    def __init__(self, bad=-1):
        self.bad = bad

    def forecast(self, histories, prediction_length, *, num_samples=100, seed=0, progress=None):
        rng = np.random.default_rng(seed)
        found = [
            Forecast(
                samples=one.target[0, -1] + rng.normal(size=(num_samples, prediction_length, 1))
            )
            for one in histories
        ]
        if self.bad >= 0:
            found[self.bad] = ValueError("too short")
        return found


def windows(table, season=7, part=(120, 200)):
    return held_out("s", table, part, horizon=12, context=50, season=season, windows=4)


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
def test_scores_are_those_of_gluonts():
    pytest.importorskip("gluonts")
    from gluonts.dataset.common import ListDataset
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MASE, MeanWeightedSumQuantileLoss
    from gluonts.model import evaluate_model
    from gluonts.model.seasonal_naive import SeasonalNaivePredictor

    table, season = values(), 7
    held = held_out("s", table, (188, 200), horizon=12, context=188, season=season, windows=1)
    start = pd.Period("2020-01-01", freq="h")
    data = ListDataset([{"start": start, "target": column} for column in table.T], freq="h")
    _, template = split(data, offset=-12)
    theirs = evaluate_model(
        model=SeasonalNaivePredictor(prediction_length=12, season_length=season),
        test_data=template.generate_instances(prediction_length=12),
        metrics=[MeanWeightedSumQuantileLoss(LEVELS), MASE()],
        axis=None,
        seasonality=season,
    )
    ours = score_naive(held)
    np.testing.assert_allclose(
        ours["crps"], theirs["mean_weighted_sum_quantile_loss"].iloc[0], 1e-6
    )
    np.testing.assert_allclose(ours["mase"], theirs["MASE[0.5]"].iloc[0], 1e-6)


def test_windows_hold_nothing_of_their_future():
    table = values()
    held = windows(table)
    assert held.future.shape == (12, 12)
    starts = [120, 143, 165, 188]
    for index, history in enumerate(held.histories):
        start, column = starts[index // 3], index % 3
        np.testing.assert_array_equal(history.target[0], table[start - 50 : start, column])
        np.testing.assert_array_equal(held.future[index], table[start : start + 12, column])
        wanted = np.abs(table[7:start, column] - table[: start - 7, column]).mean()
        np.testing.assert_allclose(held.naive_error[index], wanted)


def test_a_forecaster_is_scored_by_its_quantiles():
    held = windows(values())
    found = score(held, Known(), num_samples=200)
    samples = np.stack(
        [one.samples[..., 0] for one in Known().forecast(held.histories, 12, num_samples=200)]
    )
    loss = 0.0
    for level in LEVELS:
        at = np.quantile(samples, level, axis=1)
        over = np.maximum(at - held.future, 0) * (1 - level)
        loss += 2 * (np.maximum(held.future - at, 0) * level + over).sum()
    np.testing.assert_allclose(found["crps"], loss / 9 / np.abs(held.future).sum(), 1e-6)
    error = np.abs(held.future - np.median(samples, axis=1)).mean(axis=1)
    np.testing.assert_allclose(found["mase"], (error / held.naive_error).mean(), 1e-6)
    assert 0 < found["coverage80"] < 1


def test_missing_values_count_nowhere():
    whole, holes = values(), values()
    holes[125, 0] = holes[130, 1] = holes[30, 2] = np.nan
    held = windows(holes)
    assert np.isfinite(list(score(held, Known()).values())).all()
    quantiles = np.zeros((9, *held.future.shape))
    filled = np.nan_to_num(held.future)
    np.testing.assert_allclose(
        weighted_quantile_loss(held.future, quantiles), weighted_quantile_loss(filled, quantiles)
    )
    assert mase(held.future, filled, held.naive_error) == 0
    assert windows(whole).naive_error[2] != held.naive_error[2]


def test_the_naive_repeats_the_last_season():
    history = np.arange(10.0)
    np.testing.assert_array_equal(seasonal_naive(history, 5, 3), [7, 8, 9, 7, 8])
    history[8] = np.nan
    np.testing.assert_array_equal(seasonal_naive(history, 4, 3), [7, 5, 9, 7])
    np.testing.assert_array_equal(seasonal_naive(history[:2], 3, 3), 0.5)


def test_series_that_have_no_score():
    constant = np.full((3, 4), 2.0)
    assert np.isnan(mase(constant, constant, np.zeros(3)))
    assert np.isnan(weighted_quantile_loss(np.zeros((1, 4)), np.ones((9, 1, 4))))
    assert mase(constant, constant + 1, np.array([0.0, 2.0, 0.0])) == 0.5


def test_what_cannot_be_scored_is_said():
    held = windows(values())
    with pytest.raises(ValueError, match="no forecast of s/1/120: too short"):
        score(held, Known(bad=1))
    with pytest.raises(ValueError, match="s has 5 held-out rows; a forecast takes 12"):
        windows(values(), part=(100, 105))
