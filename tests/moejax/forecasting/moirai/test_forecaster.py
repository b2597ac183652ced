"""MOIRAI-MoE as a forecaster: batches, padding, covariates, bad input, the command."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moejax.forecasting.moirai import forecaster as module
from moejax.forecasting.moirai.autoregress import roll_out
from moejax.forecasting.moirai.forecaster import MoiraiMoEForecaster
from moejax.forecasting.series import Forecast, History
from moejax.interop.moirai import load_moirai_moe
from train import cli

FIXTURES = Path(__file__).parents[3] / "fixtures/moirai_moe"
HORIZON, SAMPLES = 20, 6


def wave(length: int = 100, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return 10 + 3 * np.sin(np.arange(length) / 4) + random.normal(0, 0.2, length)


@pytest.fixture(scope="module")
def forecaster() -> MoiraiMoEForecaster:
    return MoiraiMoEForecaster(*load_moirai_moe(FIXTURES / "model_c"), context_length=90)


@pytest.fixture(scope="module")
def some(forecaster):
    """Five series, the second and the fourth bad, and what was heard."""
    heard = []
    histories = [
        History(target=wave()[None]),
        History(target=np.full((1, 50), np.nan)),
        History(target=wave(7, seed=1)[None]),
        History(target=np.concatenate([wave(9), np.full(95, np.nan)])[None]),
        History(target=np.full((1, 40), 5.0)),
    ]
    found = forecaster.forecast(
        histories, HORIZON, num_samples=SAMPLES, seed=3, progress=heard.append
    )
    return histories, found, heard


def test_the_good_ones_of_a_batch_are_forecast(some):
    _, found, heard = some
    assert [isinstance(one, Forecast) for one in found] == [True, False, True, False, True]
    assert "none of its 50 steps has a value" in str(found[1])
    assert "none of its last 90 steps" in str(found[3])
    assert heard[-1] == 5
    for one in (found[0], found[2], found[4]):
        assert one.samples.shape == (SAMPLES, HORIZON, 1)
        assert np.isfinite(one.samples).all()


def test_a_series_depends_on_no_other(some, forecaster):
    histories, found, _ = some
    (alone,) = forecaster.forecast(histories[:1], HORIZON, num_samples=SAMPLES, seed=3)
    np.testing.assert_allclose(alone.samples, found[0].samples, rtol=1e-3, atol=1e-3)
    (other,) = forecaster.forecast(histories[:1], HORIZON, num_samples=SAMPLES, seed=4)
    assert not np.allclose(other.samples, alone.samples, rtol=1e-3, atol=1e-3)


def test_room_in_front_of_a_series_changes_nothing(some):
    histories, found, _ = some
    wide = MoiraiMoEForecaster(*load_moirai_moe(FIXTURES / "model_c"), context_length=200)
    again = wide.forecast(histories, HORIZON, num_samples=SAMPLES, seed=3)
    for index in (2, 4):
        np.testing.assert_allclose(again[index].samples, found[index].samples, rtol=1e-3, atol=1e-3)


def test_series_of_one_bucket_compile_once(some, forecaster):
    forecaster.predict(wave(95)[None], HORIZON, num_samples=SAMPLES)
    before = roll_out._cache_size()
    for length in (40, 64, 90, 300):
        forecaster.predict(wave(length)[None], HORIZON, num_samples=SAMPLES, seed=length)
    assert roll_out._cache_size() == before
    forecaster.predict(wave(95)[None], HORIZON + 16, num_samples=SAMPLES)
    assert roll_out._cache_size() == before + 1


def test_samples_in_chunks_are_the_same(some, forecaster, monkeypatch):
    histories, found, _ = some
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    again = forecaster.forecast(histories[:1], HORIZON, num_samples=SAMPLES, seed=3)
    np.testing.assert_allclose(again[0].samples, found[0].samples, rtol=1e-3, atol=1e-3)


def test_gaps_are_filled_by_all_that_was_before_them(some, forecaster):
    """Two histories that differ in front of the context alone, with a gap and without one."""
    early, late = np.full(100, 100.0), wave(90)

    def samples(*parts: np.ndarray) -> np.ndarray:
        return forecaster.predict(np.concatenate(parts)[None], HORIZON, num_samples=SAMPLES)

    np.testing.assert_array_equal(samples(early, late), samples(late))
    late[40:50] = np.nan
    assert np.abs(samples(early, late) - samples(late)).max() > 1e-3


def test_one_that_does_not_fit_in_memory_loses_no_other(some, forecaster, monkeypatch):
    histories, found, _ = some
    monkeypatch.setattr("moejax.forecasting.memory.available_bytes", lambda: 10**7)
    wide = History(target=np.ones((150, 60)))
    scalar = History(target=np.array(3.0))
    again = forecaster.forecast([histories[0], wide, scalar], HORIZON, num_samples=SAMPLES, seed=3)
    assert "a sample of 150 variates" in str(again[1])
    assert "the target has shape ()" in str(again[2])
    np.testing.assert_allclose(again[0].samples, found[0].samples, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "horizon", "message"),
    [
        ({"context_length": 0}, 4, "context_length is 0"),
        ({"context_length": 2000}, 4, "context_length is 2000; with 4 steps ahead"),
        ({"patch_size": 8}, 4, "patch_size is 8"),
        ({}, 0, "prediction_length is 0"),
        ({}, 16 * 64, "max_seq_len is 64"),
    ],
)
def test_wrong_options(options, horizon, message):
    config, variables = load_moirai_moe(FIXTURES / "model_c")
    with pytest.raises(ValueError, match=message):
        MoiraiMoEForecaster(config, variables, **options).forecast(
            [History(target=wave()[None])], horizon
        )


def test_the_command_with_covariates(tmp_path):
    rows = 60
    frame = pd.DataFrame(
        {
            "date": pd.date_range("2024", periods=rows + 4, freq="h"),
            "load": np.append(wave(rows), [np.nan] * 4),
            "hour": np.arange(rows + 4) % 24,
            "price": 1.0,
        }
    )
    frame.loc[10:12, "load"] = np.nan
    frame.to_csv(tmp_path / "own.csv", index=False)
    words = ["--csv", tmp_path / "own.csv", "--checkpoint", FIXTURES / "model_c", "--samples", 5]
    words += ["--horizon", 4, "--out", tmp_path / "out", "--target-columns", "load"]
    words += ["--known-covariates", "hour", "--past-covariates", "price", "--context", 48]
    assert cli.main(["forecast", "moirai-moe", *map(str, words)]) == 0
    quantiles = pd.read_csv(tmp_path / "out/quantiles.csv")
    assert quantiles.timestamp[0] == "2024-01-03 12:00:00"
    assert np.isfinite(quantiles["mean"]).all()
    assert (tmp_path / "out/plots/load.png").is_file()


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("", "needs --checkpoint"), ("nowhere/at-all", "nowhere/at-all")],
)
def test_no_checkpoint(tmp_path, capsys, monkeypatch, checkpoint, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pd.DataFrame({"date": pd.date_range("2024", periods=30), "a": 1.0}).to_csv(
        tmp_path / "own.csv", index=False
    )
    words = ["--csv", str(tmp_path / "own.csv"), "--horizon", "4", "--out", str(tmp_path)]
    assert cli.main(["forecast", "moirai-moe", *words, "--checkpoint", checkpoint]) == 2
    assert message in capsys.readouterr().err
