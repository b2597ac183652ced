"""Forecasters through GluonTS: its datasets, backtests and metrics."""

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.pandas import PandasDataset
from gluonts.dataset.split import split
from gluonts.ev.metrics import MASE, MSIS, MeanWeightedSumQuantileLoss
from gluonts.model import evaluate_model
from gluonts.model.forecast import QuantileForecast, SampleForecast

from moejax.forecasting.naive import SeasonalNaive
from moejax.forecasting.series import Forecast
from moejax.interop.gluonts import GluonTSPredictor

HORIZON, SEASON = 12, 24
LEVELS = tuple(level / 10 for level in range(1, 10))
START = pd.Period("2024-01-01 00:00", "h")


def wave(length: int = 240, seed: int = 0) -> np.ndarray:
    """A day's wave with noise and ten missing values."""
    random = np.random.default_rng(seed)
    values = 10 + 5 * np.sin(2 * np.pi * np.arange(length) / SEASON) + random.normal(size=length)
    values[random.choice(length - SEASON, 10, replace=False)] = np.nan
    return values


def dataset(*targets: np.ndarray) -> list[dict]:
    return [{"target": one, "start": START, "item_id": f"s{i}"} for i, one in enumerate(targets)]


class QuantilesOnly:
    """What SeasonalNaive says, as a model without samples would give it."""

    levels = (0.025, *LEVELS, 0.975)

    def forecast(self, histories, prediction_length, **options):
        found = SeasonalNaive(SEASON).forecast(histories, prediction_length, **options)
        return [Forecast(levels=self.levels, quantiles=one.at_all(self.levels)) for one in found]


class Recording:
    """SeasonalNaive that keeps what it was asked."""

    def __init__(self):
        self.histories, self.seeds = [], []

    def forecast(self, histories, prediction_length, *, seed, **options):
        self.histories += histories
        self.seeds.append(seed)
        return SeasonalNaive(SEASON).forecast(histories, prediction_length, seed=seed, **options)


def backtest():
    _, template = split(dataset(wave(seed=1), wave(200, seed=2)), offset=-HORIZON)
    return template.generate_instances(HORIZON)


@pytest.mark.parametrize("forecaster", [SeasonalNaive(SEASON), QuantilesOnly()])
def test_evaluate_model_scores_as_by_hand(forecaster):
    test = backtest()
    predictor = GluonTSPredictor(forecaster, HORIZON, num_samples=500, batch_size=1)
    metrics = [MASE("0.5"), MSIS(), MeanWeightedSumQuantileLoss(LEVELS)]
    found = evaluate_model(predictor, test_data=test, metrics=metrics, seasonality=SEASON)
    mase, msis, loss, total = [], [], 0.0, 0.0
    for (past, future), forecast in zip(test, predictor.predict(test.input), strict=True):
        truth, seen = future["target"], past["target"]
        scale = np.nanmean(np.abs(seen[SEASON:] - seen[:-SEASON]))
        mase.append(np.abs(truth - forecast.quantile(0.5)) / scale)
        low, high = forecast.quantile(0.025), forecast.quantile(0.975)
        outside = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
        msis.append((high - low + 2 / 0.05 * outside) / scale)
        total += np.abs(truth).sum()
        for level in LEVELS:
            error = truth - forecast.quantile(level)
            loss += 2 * np.maximum(level * error, (level - 1) * error).sum() / len(LEVELS)
    assert found["MASE[0.5]"].item() == pytest.approx(np.mean(mase), rel=1e-5)
    assert found["MSIS"].item() == pytest.approx(np.mean(msis), rel=1e-5)
    assert found["mean_weighted_sum_quantile_loss"].item() == pytest.approx(loss / total, rel=1e-5)


def test_forecasts_follow_their_series():
    target = wave()
    (one,) = GluonTSPredictor(SeasonalNaive(SEASON), HORIZON).predict(dataset(target), 7)
    assert isinstance(one, SampleForecast)
    assert one.samples.shape == (7, HORIZON)
    assert (one.start_date, one.item_id) == (START + len(target), "s0")
    (one,) = GluonTSPredictor(QuantilesOnly(), HORIZON).predict(dataset(target))
    assert isinstance(one, QuantileForecast)
    np.testing.assert_array_equal(one.quantile(0.5), one.mean)
    assert one.start_date == START + len(target)


def test_multivariate_entries_and_covariates_arrive():
    entry = {
        "target": np.stack([wave(seed=1), wave(seed=2)]),
        "start": START,
        "feat_dynamic_real": np.ones((3, 240 + HORIZON)),
        "past_feat_dynamic_real": np.ones((1, 240)),
    }
    forecaster = Recording()
    (one,) = GluonTSPredictor(forecaster, HORIZON, num_samples=5).predict([entry])
    assert one.samples.shape == (5, HORIZON, 2)
    (history,) = forecaster.histories
    assert history.known_ahead.shape == (3, 240 + HORIZON)
    assert history.past_only.shape == (1, 240)


def test_batches_draw_anew_and_seeds_repeat():
    data = dataset(wave(), wave(), wave())
    forecaster = Recording()
    first = list(GluonTSPredictor(forecaster, HORIZON, batch_size=1).predict(data))
    again = list(GluonTSPredictor(forecaster, HORIZON, batch_size=1).predict(iter(data)))
    other = list(GluonTSPredictor(forecaster, HORIZON, batch_size=1, seed=1).predict(data))
    assert len(set(forecaster.seeds)) == 6
    assert forecaster.seeds[:3] == forecaster.seeds[3:6]
    np.testing.assert_array_equal(first[2].samples, again[2].samples)
    assert not np.array_equal(first[0].samples, first[1].samples)
    assert not np.array_equal(first[0].samples, other[0].samples)


def test_a_bad_series_is_named_or_left_empty():
    data = dataset(wave(), np.full(240, np.nan), wave(seed=3))
    with pytest.raises(ValueError, match="series 's1': none of its 240 steps has a value"):
        list(GluonTSPredictor(SeasonalNaive(SEASON), HORIZON).predict(data))
    predictor = GluonTSPredictor(SeasonalNaive(SEASON), HORIZON, bad_series="nan")
    found = list(predictor.predict(data))
    assert [bool(np.isnan(one.samples).any()) for one in found] == [False, True, False]


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
def test_a_long_frame_through_pandas_dataset():
    frame = pd.DataFrame(
        {
            "item_id": np.repeat(["a", "b"], 240),
            "timestamp": np.tile(pd.date_range("2024", periods=240, freq="h"), 2),
            "target": np.concatenate([wave(seed=1), wave(seed=2)]),
        }
    )
    data = PandasDataset.from_long_dataframe(
        frame, item_id="item_id", timestamp="timestamp", target="target", freq="h"
    )
    found = list(GluonTSPredictor(SeasonalNaive(SEASON), HORIZON).predict(data))
    assert [one.item_id for one in found] == ["a", "b"]
    assert found[0].start_date == pd.Period("2024-01-11 00:00", "h")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_length": 0}, "prediction_length is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"bad_series": "skip"}, "bad_series is 'skip'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        GluonTSPredictor(SeasonalNaive(SEASON), **{"prediction_length": HORIZON, **options})


def test_an_entry_without_target_and_saving(tmp_path):
    predictor = GluonTSPredictor(SeasonalNaive(SEASON), HORIZON)
    with pytest.raises(ValueError, match="no target; its fields: start"):
        list(predictor.predict([{"start": START}]))
    with pytest.raises(ValueError, match="cannot be serialized"):
        predictor.serialize(tmp_path)
