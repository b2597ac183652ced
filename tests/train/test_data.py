"""Splits, windows, scaler, calendar features and the order of batches."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from train.data import DataConfig, Scaler, Splits, batches, prepare, time_features, windows

COUNTS = {  # the published numbers of windows: train, val, test
    ("etth1", 96, 96): (8449, 2785, 2785),
    ("etth1", 336, 96): (8209, 2785, 2785),
    ("etth2", 336, 192): (8113, 2689, 2689),
    ("weather", 96, 96): (36696, 5175, 10444),
}
SPLITS = {"etth1": Splits.months(17420, 24), "etth2": Splits.months(17420, 24)}


@pytest.mark.parametrize(("name", "seq_len", "pred_len"), COUNTS)
def test_window_counts_are_the_published_ones(name, seq_len, pred_len):
    splits = SPLITS.get(name, Splits.ratio(52696))
    found = [len(splits.starts(part, seq_len, pred_len)) for part in ("train", "val", "test")]
    assert tuple(found) == COUNTS[name, seq_len, pred_len]


def test_windows_of_a_part_end_with_the_part():
    splits = Splits.ratio(1000)
    starts = splits.starts("val", 30, 10)
    assert starts[0] == splits.val[0] - 30
    assert starts[-1] + 40 == splits.val[1]


def test_too_short_for_a_window_names_the_part():
    with pytest.raises(ValueError, match=r"the val part has 10 rows \(and 70 before it\)"):
        Splits.ratio(100).starts("val", 96, 24)
    with pytest.raises(ValueError, match="needs 14400 rows"):
        Splits.months(1000, 24)


def test_time_features_by_hand():
    dates = np.array(["2016-07-01T00:00:00", "2017-12-31T23:59:00"], "datetime64[s]")
    expected = [[0, -0.5, 4 / 6, 0, 182 / 365], [0, 1, 1, 1, 364 / 365]]
    np.testing.assert_allclose(time_features(dates)[0] + 0.5, [0, 4 / 6, 0, 182 / 365], atol=1e-12)
    np.testing.assert_allclose(time_features(dates)[1] + 0.5, expected[1][1:], atol=1e-12)
    assert time_features(dates, "t")[1, 0] == 0.5
    with pytest.raises(ValueError, match="freq is 'd'"):
        time_features(dates, "d")  # pyright: ignore[reportArgumentType]


def test_scaler_inverts_and_refuses_a_constant_column():
    values = np.random.default_rng(0).normal(3.0, 2.0, (50, 3))
    scaler = Scaler.fit(values)
    np.testing.assert_allclose(scaler.transform(values).std(axis=0), 1.0)
    np.testing.assert_allclose(scaler.inverse(scaler.transform(values)), values)
    values[:, 1] = 7.0
    with pytest.raises(ValueError, match=r"constant in the training rows.*: flat;"):
        Scaler.fit(values, ("a", "flat", "b"))


@pytest.mark.parametrize("name", ["etth1", "weather"])
def test_windows_and_scaler_equal_the_published_pipeline(name, shared, monkeypatch):
    path = shared / "reference" / "mole" / f"data_{name}_96_96.safetensors"
    if not path.exists():
        pytest.skip(f"needs {path}")
    monkeypatch.setenv("MOEJAX_DATA", str(shared / "data"))
    dataset = prepare(DataConfig(name=name), seq_len=96, pred_len=96)
    scaled = dataset.scaler.transform(dataset.series.values)
    marks = time_features(dataset.series.dates)
    with safe_open(path, "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        counts = file.metadata()
    np.testing.assert_allclose(dataset.scaler.mean, tensors["scaler.mean"], atol=1e-10)
    np.testing.assert_allclose(dataset.scaler.scale, tensors["scaler.scale"], atol=1e-10)
    for part, starts in dataset.starts.items():
        assert len(starts) == json.loads(counts[f"n_{part}"])
        for where in (0, -1):
            if f"{part}.{where}.x" not in tensors:  # only the ETT file holds the last windows
                continue
            start = starts[where]
            x, y = scaled[start : start + 96], scaled[start + 96 : start + 192]
            np.testing.assert_allclose(x, tensors[f"{part}.{where}.x"], atol=1e-10)
            np.testing.assert_allclose(y, tensors[f"{part}.{where}.y"], atol=1e-10)
            np.testing.assert_allclose(marks[start], tensors[f"{part}.{where}.x_mark0"], atol=1e-10)


def test_batches_cover_each_epoch_once_in_a_new_order():
    iterator = batches(103, batch_size=10, steps_per_call=4, seed=7)
    epochs = [np.concatenate([next(iterator) for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert epoch.shape == (10, 10)
        assert len(np.unique(epoch)) == 100
    assert not np.array_equal(*epochs)


def test_batches_continue_from_a_saved_state():
    iterator = batches(64, batch_size=8, steps_per_call=3, seed=1)
    for _ in range(4):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(5)]
    other = batches(64, batch_size=8, steps_per_call=3, seed=1)
    other.set_state(state)
    for one in expected:
        np.testing.assert_array_equal(next(other), one)


@pytest.mark.parametrize(("steps_per_epoch", "steps_per_call"), [(3, 2), (7, 7), (25, 4)])
def test_epochs_of_so_many_steps_are_the_same_passes(steps_per_epoch, steps_per_call):
    options = {"batch_size": 8, "seed": 1}
    whole = batches(83, steps_per_call=10, **options)
    expected = np.concatenate([next(whole) for _ in range(3)])
    cut = batches(83, steps_per_call=steps_per_call, steps_per_epoch=steps_per_epoch, **options)
    calls = [next(cut) for _ in range(30)]
    assert sum(map(len, calls[: -(-steps_per_epoch // steps_per_call)])) == steps_per_epoch
    found = np.concatenate(calls)
    count = min(len(found), len(expected))
    np.testing.assert_array_equal(found[:count], expected[:count])


def test_a_batch_larger_than_the_training_part_is_refused():
    with pytest.raises(ValueError, match="batch_size 65 is more than the 64 training windows"):
        batches(64, batch_size=65, steps_per_call=3, seed=1)


def test_windows_on_the_host():
    values = np.arange(10.0)[:, None]
    np.testing.assert_array_equal(windows(values, np.array([0, 3]), 2)[..., 0], [[0, 1], [3, 4]])
