"""Rows of a mixture: what a token holds, what is predicted, where nothing may come from."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import Splits
from train.moirai_data import rows as packed
from train.moirai_data.config import MixtureConfig
from train.moirai_data.rows import cut, make_store, pack_series
from train.moirai_data.synthetic import synthetic
from train.series_sets.sets import SeriesSet, season_of

CONFIG = MixtureConfig(
    sources=("synthetic",),
    row_tokens=20,
    min_tokens=3,
    max_tokens=9,
    rows=40,
    val_rows=8,
    context=20,
    horizon=8,
    synthetic_series=6,
    synthetic_steps=100,
)


def one_set(rows=120, columns=5, name="synthetic", missing=0.1):
    """Values that say where they come from: column * 1000 + row."""
    values = np.arange(columns) * 1000.0 + np.arange(rows)[:, None]
    rng = np.random.default_rng(3)
    values[rng.random(values.shape) < missing] = np.nan
    return SeriesSet(
        name=name,
        values=values,
        columns=tuple(map(str, range(columns))),
        splits=Splits.ratio(rows),
        season=7,
        source="here",
    )


def pack(monkeypatch, config=CONFIG, sets=None, sizes=(4,)):
    sets = sets or [one_set()]
    monkeypatch.setattr(packed, "load_sets", lambda *_, **__: (sets, []))
    return pack_series(config, sizes)


def tokens_of(data, part):
    arrays = jax.device_put(data.arrays())
    return jax.device_get(cut(arrays, jnp.asarray(data.indices[part]), data.patch_length))


@pytest.mark.parametrize(("sizes", "multivariate"), [((4,), 0.0), ((2, 4, 8), 0.5)])
def test_tokens_hold_stretches_of_their_part(monkeypatch, sizes, multivariate):
    one = one_set()
    data = pack(monkeypatch, replace(CONFIG, multivariate=multivariate), [one], sizes)
    for part, (low, high) in (("train", (0, 84)), ("val", (64, 96)), ("test", (76, 120))):
        tokens = tokens_of(data, part)
        assert tokens.target.shape[1:] == (20, max(sizes))
        for row, token in np.argwhere(tokens.sample_id > 0):
            patch = tokens.patch_size[row, token]
            assert patch in sizes
            seen = tokens.observed_mask[row, token]
            assert not seen[patch:].any()
            found = tokens.target[row, token][seen]
            place, steps = np.flatnonzero(seen), found % 1000
            assert np.all((low <= steps) & (steps < high))
            np.testing.assert_array_equal(np.diff(steps), np.diff(place))
            assert len(set(found // 1000)) <= 1
        variates = tokens.variate_id[tokens.sample_id > 0]
        assert variates.max() == 0 if not multivariate or part != "train" else variates.max() > 0
        assert not tokens.observed_mask[tokens.sample_id == 0].any()


def test_each_series_of_a_row_runs_on_and_its_end_is_predicted(monkeypatch):
    data = pack(monkeypatch, replace(CONFIG, multivariate=0.5), [one_set(missing=0)])
    tokens = tokens_of(data, "train")
    shares = []
    for row in range(len(tokens.target)):
        for sample in range(1, tokens.sample_id[row].max() + 1):
            for variate in np.unique(tokens.variate_id[row, tokens.sample_id[row] == sample]):
                own = (tokens.sample_id[row] == sample) & (tokens.variate_id[row] == variate)
                count = own.sum()
                np.testing.assert_array_equal(tokens.time_id[row, own], np.arange(count))
                predicted = tokens.prediction_mask[row, own]
                np.testing.assert_array_equal(predicted, np.sort(predicted))
                assert not predicted[0]
                assert predicted[-1]
                shares.append(1 - predicted.mean())
                firsts = tokens.target[row, own][:, -1]
                np.testing.assert_array_equal(np.diff(firsts), 4)
    assert 0.2 < np.mean(shares) < 0.7
    assert (tokens.sample_id > 0).mean() > 0.95


def test_held_out_rows_predict_their_part_behind_the_context(monkeypatch):
    data = pack(monkeypatch, sets=[one_set(missing=0)])
    for part, (low, high) in (("val", (84, 96)), ("test", (96, 120))):
        tokens = tokens_of(data, part)
        predicted = tokens.prediction_mask
        steps = tokens.target[predicted] % 1000
        assert np.all((low <= steps) & (steps < high))
        assert predicted.sum() == 8 * 2 * 2  # rows, samples, tokens of 8 steps
        behind = (tokens.sample_id > 0) & ~predicted
        assert np.all(tokens.target[behind] % 1000 < high - 8)


def test_missing_cells_are_filled_but_not_observed(monkeypatch):
    data = pack(monkeypatch)
    tokens = tokens_of(data, "train")
    inside = (tokens.sample_id > 0)[..., None] & (np.arange(4) < tokens.patch_size[..., None])
    holes = inside & ~tokens.observed_mask
    assert holes.any()
    assert np.isfinite(tokens.target).all()
    assert np.all(tokens.target[~inside] == 0)


def test_short_series_begin_with_cells_that_are_not_observed(monkeypatch):
    short = replace(one_set(missing=0), splits=Splits((0, 10), (10, 30), (30, 60)))
    tokens = tokens_of(pack(monkeypatch, sets=[short]), "train")
    lengths = {
        int(tokens.observed_mask[row][tokens.sample_id[row] == sample].sum())
        for row in range(40)
        for sample in range(1, tokens.sample_id[row].max() + 1)
    }
    assert max(lengths) == 10
    assert np.all(tokens.target[tokens.observed_mask] % 1000 < 10)


def test_the_seed_decides_the_rows(monkeypatch):
    first, again = pack(monkeypatch).fingerprint(), pack(monkeypatch).fingerprint()
    assert first == again != pack(monkeypatch, replace(CONFIG, seed=1)).fingerprint()


def test_weights_choose_the_sets(monkeypatch):
    sets = [one_set(name="etth1", missing=0), one_set(name="etth2", missing=0)]
    sets[1] = replace(sets[1], values=sets[1].values + 50_000)
    config = replace(
        CONFIG, sources=("etth1", "weather", "etth2"), weights=(0.9, 5.0, 0.1), rows=200
    )
    tokens = tokens_of(pack(monkeypatch, config, sets), "train")
    share = (tokens.target[tokens.sample_id > 0][:, 0] >= 50_000).mean()
    assert 0.05 < share < 0.16


@settings(max_examples=30, deadline=None)
@given(
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    lengths=st.integers(20, 60),
    patch=st.integers(1, 9),
)
def test_the_store_holds_every_variate_behind_its_room(widths, lengths, patch):
    sets = [one_set(lengths, columns) for columns in widths]
    store = make_store(sets, patch)
    for which, one in enumerate(sets):
        for column in range(one.num_columns):
            begin = store.first[which] + column * store.stride[which]
            place = slice(begin, begin + lengths)
            np.testing.assert_array_equal(store.observed[place], ~np.isnan(one.values[:, column]))
            assert not store.observed[begin - patch : begin].any()
            known = store.observed[place]
            np.testing.assert_array_equal(
                store.values[place][known], one.values[:, column][known].astype(np.float32)
            )
    assert len(store.values) == len(store.observed) >= place.stop + patch


def test_the_generator_has_what_it_promises():
    values = synthetic(300, 400, seed=1)
    np.testing.assert_array_equal(values, synthetic(300, 400, seed=1))
    assert values.shape == (400, 300)
    missing = np.isnan(values)
    assert 0.03 < missing.any(axis=0).mean() < 0.2
    assert not missing.all(axis=0).any()
    counts = np.all((values == np.round(values)) | missing, axis=0) & (
        np.nanmax(values, axis=0) > 0
    )
    assert 0.05 < counts.mean() < 0.2
    spread = np.nanstd(values, axis=0)
    assert spread.max() / np.median(spread) > 10
    season = np.stack([values[:-24].ravel(), values[24:].ravel()])
    assert np.isfinite(season).any()


@pytest.mark.parametrize(
    ("seconds", "season"),
    [(600, 144), (900, 96), (3600, 24), (86400, 7), (2_630_000, 12), (6e5, 1)],
)
def test_seasons(seconds, season):
    assert season_of(seconds) == season


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": ("etth3",)}, "data.sources is 'etth3'; choose one of"),
        ({"sources": ()}, "data.sources is empty and so is data.csv"),
        ({"weights": (1.0, 2.0)}, "data.weights holds 2 numbers for 1 sources"),
        ({"weights": (0.0,)}, "must be >= 0, and one above 0"),
        ({"min_tokens": 12}, "must rise, from at least 2"),
        ({"scaler_share": (0.5, 1.0)}, "data.scaler_share is"),
        ({"horizon": 0}, "data.horizon is 0"),
        ({"multivariate": 1.5}, "data.multivariate is 1.5"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **settings)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (
            9,
            {},
            "no series is long enough: synthetic .0, 1, 2. is left out: it has 6 training rows",
        ),
        (60, {"horizon": 40}, "no set has a val part of 40 rows"),
        (800, {"horizon": 80}, "data.row_tokens is 20; data.horizon 80 alone takes 20 tokens"),
    ],
)
def test_series_that_are_too_short(monkeypatch, rows, settings, message):
    with pytest.raises(ValueError, match=message):
        pack(monkeypatch, replace(CONFIG, **settings), [one_set(rows)])
