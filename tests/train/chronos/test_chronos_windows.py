"""Windows for Chronos: drawn series, plans that keep to their part, tokens as the tokenizer's."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins
from moejax.models.chronos_config import ChronosConfig
from moejax.models.chronos_losses import IGNORED
from train.chronos_data import windows
from train.chronos_data.config import WindowConfig
from train.chronos_data.kernel_synth import kernel_bank, kernel_synth
from train.chronos_data.seasonal_synth import DRIFTING, seasonal_synth
from train.chronos_data.windows import cut, load_windows, tokens_of
from train.recipes.chronos import chronos_tiny

CONTEXT, HORIZON = 40, 8
TOKENIZER = MeanScaleUniformBins(
    ChronosConfig(n_tokens=64, context_length=CONTEXT, prediction_length=HORIZON)
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Windows of a CSV of two columns, the second with gaps."""
    path = tmp_path_factory.mktemp("data") / "own.csv"
    steps = np.arange(300)
    second = np.where(steps % 7 == 3, np.nan, 5.0 + steps)
    frame = {"date": pd.date_range("2024", periods=300, freq="h"), "a": steps * 1.0, "b": second}
    pd.DataFrame(frame).to_csv(path, index=False)
    config = WindowConfig(
        csv=str(path),
        context=CONTEXT,
        horizon=HORIZON,
        min_past=10,
        rows=64,
        val_rows=8,
        mixup=2,
    )
    return config, load_windows(config)


def test_fingerprint_is_of_the_data_not_of_what_was_drawn(monkeypatch):
    """How a series is drawn ends in products whose rounding depends on the machine."""
    config = WindowConfig(
        sources=("temperatures",), kernel_series=2, kernel_steps=600, kernel_share=0.5, rows=8
    )
    one = load_windows(config)
    monkeypatch.setattr(windows, "kernel_synth", lambda *sizes: kernel_synth(*sizes) * (1 + 1e-6))
    again = load_windows(config)
    assert not np.array_equal(one.values, again.values, equal_nan=True)
    assert one.fingerprint() == again.fingerprint()
    one.sets[0].values[-1, -1] += 1
    assert one.fingerprint() != again.fingerprint()


def test_weights_of_the_sources_stay_where_a_csv_stands_in_for_them():
    """So that `data.csv=FILE` is all that a recipe with weights needs."""
    assert chronos_tiny().data.weights
    assert replace(chronos_tiny().data, csv="own.csv").csv == "own.csv"


def test_drawn_series_are_those_of_their_seed():
    one, again, other = (kernel_synth(6, 64, seed) for seed in (0, 0, 1))
    assert one.shape == (6, 64)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max(axis=1).min() > 0


def test_more_series_begin_with_the_same_ones():
    np.testing.assert_array_equal(kernel_synth(9, 64, 0)[:4], kernel_synth(4, 64, 0))


def test_kernels_are_covariances():
    for matrix in kernel_bank(64).astype(np.float64):
        np.testing.assert_allclose(matrix, matrix.T)
        assert np.linalg.eigvalsh(matrix).min() > -1e-4 * np.abs(matrix).max()


@pytest.mark.parametrize(("part", "rows"), [("train", (0, 210)), ("val", (210, 240))])
def test_what_is_predicted_lies_in_its_part(found, part, rows):
    _, data = found
    plan = data.indices[part]
    offset = data.plans["start"][plan] + CONTEXT  # of the first step ahead
    series, row = np.divmod(offset, CONTEXT + 300)
    row = row - CONTEXT
    assert set(np.unique(series)) == {0, 1}
    assert row.min() >= rows[0]
    assert (row + HORIZON).max() <= rows[1]
    np.testing.assert_allclose(data.plans["weight"][plan].sum(axis=1), 1, rtol=1e-5)


def test_a_batch_has_the_past_that_is_planned(found):
    config, data = found
    rows = data.indices["train"][:32]
    batch = cut(data.arrays(), jnp.asarray(rows), config, TOKENIZER)
    assert batch["ids"].shape == batch["mask"].shape == (32, CONTEXT + 1)
    assert batch["labels"].shape == (32, HORIZON + 1)
    known = data.plans["known"][rows]
    steps = np.arange(CONTEXT)
    assert not np.asarray(batch["mask"])[:, :-1][steps < CONTEXT - known[:, None]].any()
    assert (np.asarray(batch["labels"])[:, -1] == TOKENIZER.config.eos_token_id).all()
    assert (np.asarray(batch["labels"]) == IGNORED).any()
    assert np.asarray(batch["mask"])[:, :-1].mean() > 0.4


def test_tokens_are_those_of_the_tokenizer():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, CONTEXT + HORIZON)).astype(np.float32) * 7 + 3
    values[rng.random(values.shape) < 0.1] = np.nan
    past, future = values[:, :CONTEXT], values[:, CONTEXT:]
    ours = tokens_of(jnp.asarray(past), jnp.asarray(future), TOKENIZER)
    context = TOKENIZER.context(past)
    label = TOKENIZER.label(future, context.scale)
    assert (np.asarray(ours["ids"]) == context.ids).mean() > 0.999
    np.testing.assert_array_equal(ours["mask"], context.mask)
    expected = np.where(label.mask, label.ids, IGNORED)
    assert (np.asarray(ours["labels"]) == expected).mean() > 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_past": 50, "context": 40}, "data.min_past is 50"),
        ({"weights": (1.0,)}, "data.weights holds 1 numbers"),
        ({"drop": 1.5}, "data.drop"),
        ({"horizon": 0}, "data.horizon is 0"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        WindowConfig(**options)


def test_series_that_are_too_short(tmp_path):
    path = tmp_path / "short.csv"
    dates = pd.date_range("2024", periods=20)
    pd.DataFrame({"date": dates, "a": np.arange(20.0)}).to_csv(path, index=False)
    with pytest.raises(ValueError, match="no series is long enough for a window"):
        load_windows(WindowConfig(csv=str(path), context=40, horizon=30, min_past=10))


@pytest.mark.parametrize("period", [7, 24])
def test_seasonal_series_repeat_themselves(period):
    series = seasonal_synth(200, 6 * 24, period, seed=0)
    assert np.isfinite(series).all()
    np.testing.assert_array_equal(series, seasonal_synth(200, 6 * 24, period, seed=0))
    change = np.abs(series[:, period:] - series[:, :-period]).mean(axis=1)
    assert (change < 1e-9).any()  # some neither wander nor have noise
    if period == 24:
        other = np.abs(series[:, 11:] - series[:, :-11]).mean(axis=1)
        assert np.median(change / other) < 0.5


def test_of_drifting_series_the_last_repeat_tells_most():
    series = seasonal_synth(300, 8 * 24, 24, seed=0).reshape(300, 8, 24)[:, 2:]
    last = np.abs(series[:, 5] - series[:, 4]).mean(axis=1)
    mean = np.abs(series[:, 5] - series[:, :5].mean(axis=1)).mean(axis=1)
    drifting = last < 0.6 * mean
    assert DRIFTING - 0.1 < drifting.mean() < DRIFTING + 0.15  # some others too, by chance
    assert (series[drifting, 5].mean(axis=1) < series[drifting, 0].mean(axis=1)).mean() > 0.3


def test_shares_of_drawn_series():
    with pytest.raises(ValueError, match="together they must be at most 1"):
        WindowConfig(kernel_share=0.5, seasonal_share=0.6)
    config = WindowConfig(
        sources=("temperatures",),
        kernel_share=0.0,
        seasonal_share=0.9,
        seasonal_series=3,
        kernel_steps=128,
        context=CONTEXT,
        horizon=HORIZON,
        min_past=10,
        rows=32,
        val_rows=4,
    )
    data = load_windows(config)
    real = sum(2 * (one.num_rows + CONTEXT) for one in data.sets)
    assert (data.plans["start"][data.indices["train"], 0] >= real).mean() > 0.7
    assert (data.plans["start"][data.indices["val"]] < real).all()
