"""Pipelines and forecaster: padding, windows, seeds, bad series, usage of experts."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from moejax.forecasting.chronos.bolt import ChronosBoltPipeline
from moejax.forecasting.chronos.forecaster import ChronosForecaster
from moejax.forecasting.chronos.generate import generate
from moejax.forecasting.chronos.pipeline import ChronosMoEPipeline, ChronosPipeline, lower_median
from moejax.forecasting.series import History

FIXTURES = Path(__file__).parents[3] / "fixtures" / "chronos"


@pytest.fixture(scope="module")
def t5():
    return ChronosPipeline.from_pretrained(FIXTURES / "t5_relu")


@pytest.fixture(scope="module")
def mixture():
    return ChronosMoEPipeline.from_pretrained(FIXTURES / "moe_design_shared_then_expert")


@pytest.fixture(scope="module")
def bolt():
    return ChronosBoltPipeline.from_pretrained(FIXTURES / "bolt_random")


def series(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).cumsum() + 20


def test_samples_depend_on_series_place_and_seed_alone(t5):
    three = [series(30, seed) for seed in range(3)]
    samples = t5.predict(three, 4, num_samples=5)
    np.testing.assert_array_equal(t5.predict(three[:1], 4, num_samples=5)[0], samples[0])
    np.testing.assert_array_equal(t5.predict(three, 4, num_samples=5), samples)
    assert (t5.predict(three, 4, num_samples=5, seed=1) != samples).any()
    assert len(np.unique(samples[0], axis=0)) > 1


def test_contexts_of_one_bucket_compile_once(t5):
    t5.predict(series(33), 4, num_samples=5)
    before = generate._cache_size()
    for length in (34, 37, 40, 48, 300):
        t5.predict(series(length), 4, num_samples=5, temperature=0.9)
    assert generate._cache_size() <= before + 1


def test_long_horizons_go_on_from_the_lower_median(t5):
    context = series(40)
    whole = t5.predict(context, 12, num_samples=4)
    with pytest.warns(UserWarning, match="trained for 12 steps"):
        longer = t5.predict(context, 20, num_samples=4)
    np.testing.assert_array_equal(longer[..., :12], whole)
    assert longer.shape == (1, 4, 20)
    np.testing.assert_array_equal(lower_median(np.array([[[4.0], [1.0], [2.0], [3.0]]])), [[2.0]])
    with pytest.raises(ValueError, match="limit_prediction_length"):
        t5.predict(context, 20, limit_prediction_length=True)


def test_quantiles_and_mean_are_those_of_the_samples(t5):
    samples = t5.predict(series(30), 4, num_samples=7)
    quantiles, mean = t5.predict_quantiles(series(30), 4, [0.25, 0.5], num_samples=7)
    np.testing.assert_allclose(quantiles[..., 1], np.median(samples, axis=1), rtol=1e-6)
    np.testing.assert_allclose(mean, samples.mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"inputs": []}, "no series"),
        ({"inputs": [[]]}, "series 0 has shape"),
        ({"inputs": [[1.0, 2.0], [1.0, np.inf]]}, "series 1 has 1 values that are infinite"),
        ({"inputs": ["a", "b"]}, "no numbers"),
        ({"inputs": [np.ones(3), np.ones(3, complex)]}, "series 1 .*no numbers.* complex128"),
        ({"inputs": np.array(["2024-01-01"], "M8[D]")}, "no numbers.* datetime64"),
        ({"inputs": np.zeros((2, 2, 2))}, "shape"),
        ({"inputs": [1.0, 2.0], "prediction_length": 0}, "prediction_length is 0"),
        ({"inputs": [1.0, 2.0], "num_samples": 0}, "num_samples is 0"),
        ({"inputs": [1.0, 2.0], "num_samples": 10**12}, "GiB"),
    ],
)
def test_bad_input(t5, call, message):
    with pytest.raises(ValueError, match=message):
        t5.predict(**call)


def test_levels_must_lie_inside(t5):
    with pytest.raises(ValueError, match="quantile_levels"):
        t5.predict_quantiles([1.0, 2.0], 2, [0.5, 1.0])


@pytest.mark.parametrize("values", [np.full(9, np.nan), np.zeros(9), np.full(9, -3.0), [5.0]])
def test_dull_series_have_forecasts(t5, bolt, values):
    assert np.isfinite(t5.predict(values, 4, num_samples=5)).all()
    assert np.isfinite(bolt.predict(values, 4)).all()


def test_routing_is_told_and_counted(mixture):
    mixture.reset_stats()
    samples, info = mixture.predict_with_routing_info([series(20), series(24, 1)], 4, num_samples=3)
    np.testing.assert_array_equal(
        samples, mixture.predict([series(20), series(24, 1)], 4, num_samples=3)
    )
    assert info["router_probs"].shape == (2, info["num_experts"])
    assert info["expert_indices"].shape == (2, info["num_active_experts"])
    np.testing.assert_allclose(info["top_k_probs"].sum(axis=1), 1, rtol=1e-6)
    stats = mixture.get_expert_usage_stats()
    assert stats["total"] == sum(stats["counts"].values()) == 2 * 2 * info["num_active_experts"]
    assert sum(stats["fractions"].values()) == pytest.approx(1)
    mixture.reset_stats()
    assert mixture.get_expert_usage_stats()["total"] == 0


def test_the_fork_forecasts_from_encoder_positions():
    fork = ChronosMoEPipeline.from_pretrained(FIXTURES / "moe_fork_shared_then_expert")
    samples = fork.predict(series(20), 8, num_samples=3)
    assert samples.shape == (1, 3, 8)
    assert np.isfinite(samples).all()


def test_one_bad_series_does_not_lose_the_others(t5, bolt):
    good = [series(25), series(40, 1)]
    rows = [good[0], np.full(5, np.nan), good[1], np.array([1.0, np.inf])]
    histories = [History(target=np.asarray(row)[None]) for row in rows]
    done = []
    with warnings.catch_warnings(action="error"):
        found = ChronosForecaster(t5).forecast(histories, 4, num_samples=5, progress=done.append)
    assert [isinstance(one, ValueError) for one in found] == [False, True, False, True]
    np.testing.assert_array_equal(
        np.stack([found[0].samples[..., 0], found[2].samples[..., 0]]),
        t5.predict(good, 4, num_samples=5),
    )
    assert done[-1] == 4
    assert done == sorted(done)
    quantiles = ChronosForecaster(bolt).forecast(histories, 4)
    assert quantiles[2].at(0.9).shape == (4, 1)


def test_targets_are_series_of_their_own_and_covariates_are_left_out(t5):
    target = np.stack([series(30), series(30, 1)])
    with pytest.warns(UserWarning, match="covariates"):
        (found,) = ChronosForecaster(t5).forecast(
            [History(target=target, past_only=target)], 4, num_samples=5
        )
    np.testing.assert_array_equal(
        found.samples.transpose(2, 0, 1), t5.predict(target, 4, num_samples=5)
    )
