"""Seasonal naive, and the checks that every forecaster shares."""

import numpy as np
import pytest

from moejax.forecasting.naive import SeasonalNaive
from moejax.forecasting.series import Forecast, History

SEASON = 4


def history(*rows, **others) -> History:
    return History(target=np.array(rows, np.float64), **others)


def test_a_perfect_season_is_repeated():
    season = np.array([1.0, 5.0, 2.0, 7.0])
    (found,) = SeasonalNaive(SEASON).forecast([history(np.tile(season, 5))], 10)
    assert found.samples.shape == (100, 10, 1)
    np.testing.assert_array_equal(found.samples[:, :, 0], np.tile(season, (100, 3))[:, :10])


def test_missing_values_take_the_season_before():
    values = [1, 5, 2, 7, 1, 5, 2, 7, 1, np.nan, 2]
    (found,) = SeasonalNaive(SEASON).forecast([history(values)], 6)
    np.testing.assert_array_equal(found.mean[:, 0], [7, 1, 5, 2, 7, 1])


def test_samples_are_a_random_walk_of_seasons():
    values = np.random.default_rng(0).normal(size=4000).reshape(-1, SEASON).cumsum(axis=0).ravel()
    (found,) = SeasonalNaive(SEASON).forecast([history(values)], 3 * SEASON, num_samples=20000)
    spread = found.samples[..., 0].var(axis=0).reshape(3, SEASON).mean(axis=1)
    np.testing.assert_allclose(spread, [1, 2, 3], rtol=0.06)
    np.testing.assert_allclose(found.mean[:SEASON, 0], values[-SEASON:], atol=0.1)


def test_targets_are_apart_and_a_series_depends_on_its_place_alone():
    rows = np.random.default_rng(0).normal(size=(2, 40))
    naive = SeasonalNaive(SEASON)
    both = naive.forecast([history(*rows), history(rows[0])], 5, seed=3)
    again = naive.forecast([history(*rows)], 5, seed=3)
    other = naive.forecast([history(*rows)], 5, seed=4)
    assert both[0].samples.shape == (100, 5, 2)
    np.testing.assert_array_equal(both[0].samples, again[0].samples)
    assert not np.array_equal(both[0].samples, other[0].samples)


def test_context_limits_what_is_seen():
    values = np.concatenate([np.full(40, 100.0), np.tile([1.0, 2.0, 3.0, 4.0], 3)])
    (found,) = SeasonalNaive(SEASON, 12).forecast([history(values)], 4)
    assert found.samples.std() == pytest.approx(np.std([1, 2, 3, 4]))


BAD = {
    "empty": (history([]), r"shape \(1, 0\)"),
    "flat": (History(target=np.ones(9)), r"shape \(9,\)"),
    "missing": (history([np.nan] * 9), "none of its 9 steps has a value"),
    "infinite": (history([1, 2, -np.inf] * 3), "3 values are infinite .* the first -inf at step 3"),
    "large": (history([1e39] * 9), "too large for float32"),
    "ahead": (history([1] * 9, known_ahead=np.ones((2, 9))), r"must be \[number, 11\]"),
    "past": (history([1] * 9, past_only=np.ones((2, 11))), r"must be \[number, 9\]"),
    "covariate": (history([1] * 9, past_only=np.full((1, 9), np.inf)), "covariates of the past"),
    "short": (history([1, 2, 3, 4]), "a season of 4 steps apart"),
    "hole": (history([1, np.nan, 3, 4] * 3), "1 of the 4 places in the season have no value"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_a_bad_series_leaves_the_others(bad, reason):
    good, heard = history(np.arange(12)), []
    found = SeasonalNaive(SEASON).forecast([good, bad, good], 2, progress=heard.append)
    assert heard == [1, 2, 3]
    assert isinstance(found[0], Forecast)
    assert isinstance(found[2], Forecast)
    with pytest.raises(ValueError, match=reason):
        raise found[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeasonalNaive(0), "season_length is 0"),
        (lambda: SeasonalNaive(7, 7), "must exceed the season, 7"),
        (lambda: SeasonalNaive(1).forecast([], 0), "prediction_length is 0"),
        (lambda: SeasonalNaive(1).forecast([], 1, num_samples=0), "num_samples is 0"),
        (
            lambda: SeasonalNaive(1).forecast([history([1, 2])], 10**9, num_samples=10**5),
            r"100000 samples of 1000000000 steps of 1 targets takes about 745,058.1 GiB",
        ),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_quantiles_of_a_forecast():
    samples = np.random.default_rng(0).normal(size=(50, 3, 2))
    one = Forecast(samples=samples)
    levels = (0.1, 0.5, 0.75)
    np.testing.assert_allclose(one.at_all(levels), [one.at(level) for level in levels])
    np.testing.assert_array_equal(one.at(0.5), np.median(samples, axis=0))
    table = Forecast(levels=levels, quantiles=one.at_all(levels))
    np.testing.assert_array_equal(table.at_all(levels), one.at_all(levels))
    np.testing.assert_array_equal(table.mean, table.at(0.5))
    for forecast in (one, table):
        with pytest.raises(ValueError, match=r"quantile level is 1.0"):
            forecast.at_all([0.5, 1.0])
    with pytest.raises(ValueError, match=r"no quantile 0.2"):
        table.at(0.2)
