"""Scores by hand, and the use of experts on gates whose answer is known."""

import numpy as np
import pytest

from train.metrics import (
    Units,
    channel_scores,
    expert_usage,
    forecast_errors,
    forecast_scores,
    seasonal_naive_error,
)


def scores_by_hand(y, target, units):
    """Straight from the definitions, in float64 NumPy, over [W,P,C]."""
    own = [value * units.scale + units.mean for value in (y, target)]
    relative = 2 * np.abs(own[0] - own[1]) / (np.abs(own[0]) + np.abs(own[1]))
    return {
        "mse": np.mean((y - target) ** 2),
        "mae": np.mean(np.abs(y - target)),
        "mse_original": np.mean((own[0] - own[1]) ** 2),
        "mae_original": np.mean(np.abs(own[0] - own[1])),
        "smape": 100 * np.mean(relative),
        "mase": np.mean(np.abs(y - target).mean(axis=(0, 1)) / units.naive),
    }


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    y, target = rng.normal(size=(2, 50, 6, 3)).astype(np.float32)
    units = Units(
        mean=np.array([10.0, -3.0, 0.5]),
        scale=np.array([2.0, 0.1, 30.0]),
        naive=np.array([0.5, 1.0, 2.0]),
    )
    return y, target, units


def means(y, target, units):
    return {key: np.mean(value, axis=0) for key, value in forecast_errors(y, target, units).items()}


def test_scores_follow_their_definitions(case):
    y, target, units = case
    found = forecast_scores(means(y, target, units), units)
    expected = scores_by_hand(y.astype(np.float64), target.astype(np.float64), units)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_scores_of_channels_average_to_the_whole(case):
    y, target, units = case
    table = channel_scores(means(y, target, units), units, ("a", "b", "c"))
    whole = forecast_scores(means(y, target, units), units)
    assert list(table) == ["a", "b", "c"]
    for name, value in whole.items():
        np.testing.assert_allclose(np.mean([row[name] for row in table.values()]), value)


def test_zero_against_zero_is_no_relative_error(case):
    _, _, units = case
    zero = np.broadcast_to((-units.mean / units.scale).astype(np.float32), (1, 2, 3))
    exact = Units(mean=np.zeros(3), scale=np.ones(3), naive=np.zeros(3))
    errors = forecast_errors(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), exact)
    assert np.all(errors["relative"] == 0)
    assert np.isfinite(forecast_errors(zero, zero, units)["relative"]).all()
    assert np.isnan(forecast_scores(means(zero, zero, exact), exact)["mase"])


def test_seasonal_naive_error_by_hand():
    rows = np.array([[0.0], [1.0], [4.0], [9.0]])
    np.testing.assert_allclose(seasonal_naive_error(rows, 2), [(4 + 8) / 2])
    np.testing.assert_allclose(seasonal_naive_error(rows, 99), [3.0])


DATES = np.datetime64("2024-01-01T00:00:00") + np.arange(24 * 14) * np.timedelta64(3600, "s")


def test_usage_of_experts_that_share_the_day():
    gate = np.zeros((len(DATES), 2, 3), np.float32)
    morning = np.arange(len(DATES)) % 24 < 12
    gate[morning, 0] = 1
    gate[~morning, 1] = 1
    usage = expert_usage(gate, DATES, ("a", "b", "c"))
    np.testing.assert_array_equal(usage["hour"][:12], [[1, 0]] * 12)
    np.testing.assert_array_equal(usage["hour"][12:], [[0, 1]] * 12)
    np.testing.assert_allclose(usage["weekday"], 0.5)
    np.testing.assert_allclose(usage["channel"], 0.5)
    assert usage["balance"] == pytest.approx(1)
    assert usage["specialisation"] == pytest.approx(1)


def test_usage_of_a_gate_that_never_moves():
    gate = np.broadcast_to(np.array([0.7, 0.2, 0.1])[None, :, None], (24, 3, 2))
    usage = expert_usage(gate, DATES[:24])
    np.testing.assert_allclose(usage["mean"], [0.7, 0.2, 0.1])
    assert usage["specialisation"] == pytest.approx(0)
    assert 0 < usage["balance"] < 1
    assert np.isnan(usage["weekday"][1:]).all()
