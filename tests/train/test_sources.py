"""Loading: published sets, the fallback, the own CSV and everything that can be wrong with it."""

import functools
import gzip
import hashlib
import http.server
import threading
import zipfile

import numpy as np
import pandas as pd
import pytest

from train.data import DataConfig, load_series, prepare
from train.sources import PUBLISHED, Published, load_temperatures


def table(rows: int = 200, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    dates = pd.date_range("2020-01-01", periods=rows, freq="h")
    numbers = {"a": rng.normal(size=rows), "b": rng.normal(size=rows), "c": rng.normal(size=rows)}
    return pd.DataFrame({"when": dates, **numbers, **columns})


@pytest.fixture
def write(tmp_path):
    def to_file(frame, name="own.csv", **options) -> str:
        frame.to_csv(tmp_path / name, index=False, **options)
        return str(tmp_path / name)

    return to_file


def load(path, **options):
    return load_series(DataConfig(name="csv", csv=path, **options))


def test_own_csv_guesses_the_date_and_ignores_text(write):
    series = load(write(table(note=["x"] * 200)))
    assert series.columns == ("a", "b", "c")
    assert series.notes == ("columns without numbers ignored: note",)
    assert series.step_seconds() == 3600
    assert str(series.dates[1]) == "2020-01-01T01:00:00"


def test_gzip_other_separator_and_named_date(write):
    path = write(table().rename(columns={"when": "Zeit"}), "own.csv.gz", sep=";")
    series = load(path, separator=";", date_column="Zeit")
    assert series.name == "own"
    assert series.values.shape == (200, 3)


@pytest.mark.parametrize(
    ("mode", "target", "columns", "num_targets"),
    [
        ("M", "", ("a", "b", "c"), 3),
        ("S", "b", ("b",), 1),
        ("MS", "a", ("b", "c", "a"), 1),
        ("MS", "", ("a", "b", "c"), 1),
    ],
)
def test_modes(write, mode, target, columns, num_targets):
    series = load(write(table()), mode=mode, target=target)
    assert (series.columns, series.num_targets) == (columns, num_targets)


def test_missing_values_are_an_error_or_interpolated_and_counted(write):
    frame = table()
    expected = frame["b"].copy()
    frame.loc[10:12, "b"] = np.nan
    frame.loc[0, "a"] = np.inf
    path = write(frame)
    with pytest.raises(ValueError, match=r"4 missing or infinite values, most in column 'b' \(3"):
        load(path)
    series = load(path, interpolate=True)
    assert "4 of 600 values interpolated" in series.notes[0]
    np.testing.assert_allclose(series.values[11, 1], (expected[9] + expected[13]) / 2)
    assert series.values[0, 0] == series.values[1, 0]


def test_gaps_are_an_error_or_filled_and_counted(write):
    frame = table().drop(index=[50, 51, 90])
    path = write(frame)
    with pytest.raises(ValueError, match=r"2 time steps other than the usual 3600 s.* 3 rows are"):
        load(path)
    series = load(path, interpolate=True)
    assert series.num_rows == 200
    assert "3 of 200 rows were absent" in series.notes[0]
    assert np.all(np.diff(series.dates) == np.timedelta64(3600, "s"))
    assert np.isfinite(series.values).all()


def moved(frame, row, shift):
    frame = frame.copy()
    frame.loc[row, "when"] += pd.Timedelta(shift)
    return frame


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (moved(table(), 20, "-3h"), {}, "go back in data row 21"),
        (moved(table(), 20, "-1h"), {"interpolate": True}, "1 repeated dates.*data row 21"),
        (moved(table(), 20, "7min"), {"interpolate": True}, "do not lie on one grid"),
        (table()[["when"]].assign(text="x"), {}, "no numeric column"),
        (table()[["when"]], {}, "has one column, 'when'"),
        (table().drop(columns="when"), {}, "has no column of dates"),
        (table(time=range(200)), {}, "date column 'time' .* holds numbers"),
        (table(date=["2020-01-01"] * 199 + ["soon"]), {}, "first is 'soon' in data row 200"),
        (table(d=[1.5] * 199 + ["n.v."]), {}, "column 'd' .* 1 cells that are not numbers"),
        (table(e=[np.nan] * 200), {"interpolate": True}, "without any value: e"),
        (table(), {"date_column": "wen"}, "Did you mean 'when'"),
        (table(), {"columns": ("a", "bb")}, "names 'bb', not a numeric column"),
        (table(), {"mode": "S", "target": "d"}, "data.target names 'd'"),
        (table(), {"target": "a"}, "data.target is set but data.mode is 'M'"),
        (table(2), {}, "has 2 rows; at least 3"),
    ],
)
def test_bad_tables(write, frame, options, message):
    with pytest.raises(ValueError, match=message):
        load(write(frame), **options)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.csv' does not exist"):
        load(str(tmp_path / "nothing.csv"))
    with pytest.raises(ValueError, match="does not exist or is not a file"):
        load(str(tmp_path))
    empty, cut, binary = tmp_path / "e.csv", tmp_path / "c.csv.gz", tmp_path / "b.csv"
    empty.touch()
    cut.write_bytes(gzip.compress(b"date,a\n2020-01-01,1\n" * 1000)[:40])
    binary.write_bytes(b"date,a\n\xff\xfe\x00\n")
    with pytest.raises(ValueError, match="is empty"):
        load(str(empty))
    for path in (cut, binary):
        with pytest.raises(ValueError, match="cannot be read as CSV"):
            load(str(path))
    with pytest.raises(ValueError, match=r"data.csv is empty; give your file"):
        load_series(DataConfig(name="csv"))


def test_constant_column_is_refused_or_dropped(write):
    path = write(table(flat=3.0))
    with pytest.raises(ValueError, match=r"constant in the training rows.*: flat"):
        prepare(DataConfig(name="csv", csv=path), seq_len=10, pred_len=5)
    config = DataConfig(name="csv", csv=path, drop_constant=True)
    dataset = prepare(config, seq_len=10, pred_len=5)
    assert dataset.series.columns == ("a", "b", "c")
    assert dataset.series.notes == ("constant columns dropped: flat",)
    assert dataset.targets == slice(0, 3)


def test_unknown_data_set_suggests_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'etth1'"):
        load_series(DataConfig(name="eth1"))


def test_temperatures_are_hourly_and_complete():
    series = load_temperatures()
    assert series.values.shape == (8760, 2)
    assert np.isfinite(series.values).all()
    assert np.all(np.diff(series.dates) == np.timedelta64(3600, "s"))


def test_without_folder_and_network_falls_back_and_says_so(monkeypatch):
    monkeypatch.delenv("MOEJAX_DATA", raising=False)
    series = load_series(DataConfig(name="etth1", allow_download=False))
    assert series.fallback_for == "etth1"
    assert "scores do not compare with etth1" in series.notes[0]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server for the files of a folder, and an empty download cache."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("MOEJAX_DATA", raising=False)
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_downloads_are_checked_and_cached(server, monkeypatch):
    folder, url = server
    text = table().to_csv(index=False).encode()
    digest = hashlib.sha256(text).hexdigest()
    (folder / "plain.csv").write_bytes(text)
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.writestr("inside/packed.csv", text)
    packed = hashlib.sha256((folder / "packed.zip").read_bytes()).hexdigest()
    specs = {
        "etth1": Published(digest, f"{url}/plain.csv"),
        "weather": Published(digest, f"{url}/packed.zip", "inside/packed.csv", packed),
        "etth2": Published("0" * 64, f"{url}/plain.csv"),
    }
    for name, spec in specs.items():
        monkeypatch.setitem(PUBLISHED, name, spec)
    for name in ("etth1", "weather"):
        assert load_series(DataConfig(name=name)).columns == ("a", "b", "c")
    assert "SHA256 hash" in load_series(DataConfig(name="etth2")).notes[0]
    (folder / "plain.csv").unlink()
    assert load_series(DataConfig(name="etth1")).num_rows == 200
    series = load_series(DataConfig(name="etth2"))
    assert series.fallback_for == "etth2"
    assert "download failed (HTTPError)" in series.notes[0]


def test_a_changed_published_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEJAX_DATA", str(tmp_path))
    (tmp_path / "ETTh1.csv").write_text("date,a\n2020-01-01,1\n")
    with pytest.raises(ValueError, match=r"is not the published ETTh1.csv"):
        load_series(DataConfig(name="etth1"))
    monkeypatch.setenv("MOEJAX_DATA", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="which is not a folder"):
        load_series(DataConfig(name="etth1"))


def test_published_weather_is_used_as_it_is(shared, monkeypatch):
    monkeypatch.setenv("MOEJAX_DATA", str(shared / "data"))
    series = load_series(DataConfig(name="weather"))
    assert series.values.shape == (52696, 21)
    assert (series.values == -9999).sum() == 81
    assert "one repeated stamp" in series.notes[0]
    with pytest.raises(ValueError, match="repeated dates"):
        load(str(shared / "data" / "weather.csv.gz"))
