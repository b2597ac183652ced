"""Tables to series: long and wide, missing values, covariates, bad series among good ones."""

import gzip

import numpy as np
import pandas as pd
import pytest

from train.forecasts.columns import ColumnOptions
from train.forecasts.csv import read_csv
from train.forecasts.items import read_items

ROWS, HORIZON = 30, 4


def wide(rows: int = ROWS, **columns) -> pd.DataFrame:
    dates = pd.date_range("2024-01-01", periods=rows, freq="h")
    values = {"a": np.arange(rows) + 0.5, "b": -np.arange(rows) + 0.5}
    return pd.DataFrame({"date": dates.astype(str), **values, **columns})


def long(*ids: str, rows: int = ROWS) -> pd.DataFrame:
    parts = [wide(rows)[["date", "a"]].assign(item_id=one) for one in ids]
    return pd.concat(parts, ignore_index=True).rename(columns={"a": "target"})


def read(frame, horizon: int = HORIZON, **options):
    return read_items(frame, ColumnOptions(**options), horizon, "the table")


def names(table) -> list[str]:
    return [item.item_id for item in table.items]


def test_wide_columns_are_series():
    table = read(wide(note=["x"] * ROWS))
    assert names(table) == ["a", "b"]
    assert table.notes == ("columns not used: note",)
    assert not table.bad
    assert not table.named_targets
    one = table.items[1]
    np.testing.assert_array_equal(one.history.target, [-np.arange(ROWS) + 0.5])
    assert one.ahead[0] == pd.Timestamp("2024-01-02 06:00")
    assert len(one.ahead) == HORIZON


def test_an_index_that_was_written_along_is_no_series(tmp_path):
    wide().to_csv(tmp_path / "own.csv")
    table = read_csv(tmp_path / "own.csv", ColumnOptions(), HORIZON)
    assert names(table) == ["a", "b"]
    assert table.notes == ("columns not used: Unnamed: 0",)


def test_multivariate_joins_columns():
    (item,) = read(wide(), multivariate=True).items
    assert item.item_id == "series"
    assert item.columns == ("a", "b")
    assert item.history.target.shape == (2, ROWS)


def test_long_rows_in_any_order():
    frame = long("x", "y").sample(frac=1, random_state=0, ignore_index=True)
    table = read(frame)
    assert sorted(names(table)) == ["x", "y"]
    for item in table.items:
        np.testing.assert_array_equal(item.history.target, [np.arange(ROWS) + 0.5])
    assert table.notes == ("rows were sorted by time in 2 of 2 items",)


def test_items_may_have_their_own_frequency_and_length():
    daily = long("d", rows=12)
    daily["date"] = pd.date_range("2020-01-01", periods=12).astype(str)
    table = read(pd.concat([long("h"), daily], ignore_index=True))
    assert [item.offset.freqstr for item in table.items] == ["h", "24h"]
    assert [item.history.target.shape for item in table.items] == [(1, ROWS), (1, 12)]


def test_several_targets_of_an_item():
    frame = long("x").assign(other=1.0)
    table = read(frame, targets=("target", "other"))
    assert [(item.item_id, item.columns) for item in table.items] == [
        ("x", ("target",)),
        ("x", ("other",)),
    ]
    assert table.named_targets
    frame.loc[3, "other"] = np.inf
    table = read(frame, targets=("target", "other"))
    assert [one.name for one in table.bad] == ["x/other"]


def test_absent_rows_and_empty_cells_are_missing():
    frame = wide()
    frame.loc[[0, 1, 9], "a"] = np.nan
    table = read(frame.drop(index=[5, 6]))
    a, b = table.items
    assert a.dates[0] == pd.Timestamp("2024-01-01 02:00")
    assert list(np.flatnonzero(np.isnan(a.history.target[0]))) == [3, 4, 7]
    assert list(np.flatnonzero(np.isnan(b.history.target[0]))) == [5, 6]
    assert table.notes[0].startswith("2 rows were absent from the time axes of 1 of 1 items")


def test_all_series_of_a_wide_table_start_ahead_at_the_same_time():
    frame = wide()
    frame.loc[ROWS - 3 :, "a"] = np.nan
    a, b = read(frame).items
    assert a.ahead[0] == b.ahead[0]
    assert np.isnan(a.history.target[0, -3:]).all()


def test_covariates_known_ahead_need_rows_beyond_the_target():
    frame = wide(ROWS + HORIZON, temperature=np.arange(ROWS + HORIZON) * 0.1, price=1.0)
    frame.loc[ROWS:, ["a", "b", "price"]] = np.nan
    (item,) = read(frame, targets=("a",), known_ahead=("temperature",), past_only=("price",)).items
    assert item.history.target.shape == (1, ROWS)
    assert item.history.known_ahead.shape == (1, ROWS + HORIZON)
    assert item.history.past_only.shape == (1, ROWS)
    assert item.ahead[0] == pd.Timestamp(frame.date[ROWS])
    table = read(frame, HORIZON + 1, targets=("a",), known_ahead=("temperature",))
    assert "has no value for 2024-01-02 10:00:00; it must be known until" in table.bad[0].reason
    frame.loc[ROWS + 1, "temperature"] = np.nan
    table = read(frame, targets=("a",), known_ahead=("temperature",))
    assert "no value for 2024-01-02 07:00:00" in table.bad[0].reason


BAD = {
    "repeated": ({"date": {4: "2024-01-01 03:00:00"}}, "1 timestamps are repeated"),
    "irregular": ({"date": {4: "2024-01-01 03:07:00"}}, "the timestamps are irregular: 2 of 29"),
    "unread": ({"date": {4: "soon"}}, "1 timestamps cannot be read .* 'soon' in data row 35"),
    "infinite": ({"target": {4: np.inf}}, "1 cells that are no numbers.* 'inf' in data row 35"),
    "large": ({"target": {4: 1e39}}, "over 3.4e.38, the first is '1e.39' in data row 35"),
    "text": ({"target": {4: "n/k"}}, "'n/k' in data row 35"),
    "integer": ({"target": {4: 10**400}}, "'10000.*' in data row 35"),
    "empty": ({"target": dict.fromkeys(range(ROWS), np.nan)}, "none of its 30 rows has a value"),
    "unnamed": ({"item_id": dict.fromkeys(range(ROWS), "")}, "30 rows have no item_id"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD.values(), ids=BAD)
def test_a_bad_series_is_listed_and_the_others_stay(changes, reason):
    frame = long("x", "bad", "z").astype({"target": object})
    for column, cells in changes.items():
        for row, cell in cells.items():
            frame.loc[ROWS + row, column] = cell
    table = read(frame)
    assert names(table) == ["x", "z"]
    (bad,) = table.bad
    assert bad.item_id in ("bad", "")
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)


def test_one_row_takes_the_frequency_of_the_others():
    frame = pd.concat([long("x"), long("one", rows=1)], ignore_index=True)
    table = read(frame)
    assert names(table) == ["x", "one"]
    assert table.items[1].ahead[0] == pd.Timestamp("2024-01-01 01:00")
    table = read(long("one", rows=1))
    assert "one timestamp, which tells no frequency" in table.bad[0].reason
    assert names(read(long("one", rows=1), freq="h")) == ["one"]


TABLE_ERRORS = {
    "item": (long("x"), {"item": "shop"}, "item_column names 'shop', not a column"),
    "near": (wide(), {"targets": ("dat",)}, "names 'dat'.* Did you mean 'date'"),
    "known": (wide(), {"known_ahead": ("t",)}, "known_covariates names 't'"),
    "past": (wide(), {"past_only": ("t",)}, "past_covariates names 't'"),
    "time": (wide(), {"timestamp": "when"}, "timestamp_column is 'when', not a column"),
    "twice": (wide(), {"targets": ("a",), "past_only": ("a",)}, "'a' is given several parts"),
    "single": (wide(), {"targets": ("a",), "multivariate": True}, "has one target column, 'a'"),
    "text": (wide(t=["x"] * ROWS), {"targets": ("t",)}, "column 't' .* holds no number"),
    "no number": (wide()[["date"]].assign(t="x"), {}, "no column of numbers to forecast"),
    "no date": (wide()[["a", "b"]], {}, "has no column of dates"),
    "dates": (wide().assign(date="soon"), {}, "no cell of the timestamp column 'date'"),
    "repeated": (wide().assign(date="2024-01-01"), {}, "the table: 29 timestamps are repeated"),
    "several": (
        long("x").rename(columns={"target": "u"}).assign(v=1.0),
        {},
        "several columns of numbers, u, v, and none is called target or y",
    ),
}


@pytest.mark.parametrize(("frame", "options", "message"), TABLE_ERRORS.values(), ids=TABLE_ERRORS)
def test_what_is_wrong_with_the_whole_table(frame, options, message):
    with pytest.raises(ValueError, match=message):
        read(frame, **options)


def test_horizon_of_nothing():
    with pytest.raises(ValueError, match="the horizon is 0"):
        read(wide(), 0)


def test_csv_keeps_names_of_items_and_reads_gzip(tmp_path):
    frame = long("007", "NA", "7")
    path = tmp_path / "own.csv.gz"
    path.write_bytes(gzip.compress(frame.to_csv(index=False, sep=";").encode()))
    table = read_csv(path, ColumnOptions(), HORIZON, separator=";")
    assert names(table) == ["007", "NA", "7"]
    wide().to_csv(tmp_path / "load.csv", index=False)
    (item,) = read_csv(tmp_path / "load.csv", ColumnOptions(multivariate=True), HORIZON).items
    assert item.item_id == "load"


def test_decimal_comma(tmp_path):
    (tmp_path / "own.csv").write_text("date;a\n01.01.2024;0,5\n02.01.2024;1.234,5\n")
    with pytest.raises(ValueError, match=r"no column of numbers .*--decimal"):
        read_csv(tmp_path / "own.csv", ColumnOptions(), HORIZON, separator=";")
    (tmp_path / "own.csv").write_text("date;a\n01.01.2024;0,5\n02.01.2024;1,5\n")
    table = read_csv(tmp_path / "own.csv", ColumnOptions(), HORIZON, separator=";", decimal=",")
    np.testing.assert_array_equal(table.items[0].history.target, [[0.5, 1.5]])
    with pytest.raises(ValueError, match="separator ',' and decimal ','"):
        read_csv(tmp_path / "own.csv", ColumnOptions(), HORIZON, decimal=",")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist or is not a file; see --csv"),
        ("", "is empty"),
        ("date,a\n", "has 0 rows; at least 1"),
        ("date;a\n2024-01-01;1\n", "when split at ','; .*--separator"),
        ('date,a\n2024-01-01,"1\n', "cannot be read as CSV"),
    ],
)
def test_files_that_are_no_table(tmp_path, text, message):
    path = tmp_path / "own.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_csv(path, ColumnOptions(), HORIZON)


def test_whole_numbers_beyond_every_type(tmp_path):
    frame = wide(c=[str(10**400)] + ["1"] * (ROWS - 1), d=[str(2**70)] * ROWS)
    frame.to_csv(tmp_path / "own.csv", index=False)
    table = read_csv(tmp_path / "own.csv", ColumnOptions(), HORIZON)
    assert names(table) == ["a", "b", "d"]
    assert table.items[2].history.target[0, 0] == 2.0**70
    assert table.bad[0].item_id == "c"
