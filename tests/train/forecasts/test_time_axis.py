"""Time axes: inferred steps, absent rows, what is refused."""

import numpy as np
import pandas as pd
import pytest

from train.forecasts.time_axis import dates_ahead, make_axis, read_dates, season_length

SEASONS = {
    "ms": 1,
    "10s": 6,
    "min": 1440,
    "15min": 96,
    "h": 24,
    "2h": 12,
    "D": 7,
    "2D": 1,
    "B": 5,
    "W-SUN": 52,
    "MS": 12,
    "ME": 12,
    "QE": 4,
    "QS": 4,
    "YS": 1,
    "YE": 1,
}


@pytest.mark.parametrize(("freq", "season"), SEASONS.items())
def test_the_step_is_found_though_rows_are_absent(freq, season):
    dates = pd.date_range("2021-01-03", periods=40, freq=freq)
    absent = [5, 6, 11]
    axis = make_axis(dates.delete(absent))
    assert (axis.dates == dates).all()
    assert axis.absent == 3
    np.testing.assert_array_equal(axis.place, np.delete(np.arange(40), absent))
    ahead = dates_ahead(dates[-1], axis.offset, 30)
    assert (ahead == pd.date_range(dates[-1], periods=31, freq=freq)[1:]).all()
    assert season_length(axis.offset) == season


def test_a_day_in_the_middle_of_each_month():
    dates = pd.DatetimeIndex([f"2020-{month:02}-15" for month in range(1, 13)])
    axis = make_axis(dates)
    assert season_length(axis.offset) == 12
    ahead = dates_ahead(dates[-1], axis.offset, 2)
    assert list(ahead.astype(str)) == ["2021-01-15", "2021-02-15"]


def test_a_given_frequency_places_few_rows():
    axis = make_axis(pd.DatetimeIndex(["2020-01-01 00:00", "2020-01-01 05:00"]), "h")
    assert len(axis.dates) == 6
    assert axis.absent == 4
    assert len(make_axis(pd.DatetimeIndex(["2020-01-01"]), "D").dates) == 1


@pytest.mark.parametrize(
    ("dates", "freq", "message"),
    [
        (
            ["2020-01-01", "2020-01-01", "2020-01-02"],
            "",
            "1 timestamps are repeated, .* 2020-01-01",
        ),
        (["2020-01-01", "2020-01-02", "2020-01-05 03:00"], "", "irregular: 1 of 2 steps"),
        (["2020-01-01", "2020-01-03", "2020-01-04", "2020-01-08"], "", "irregular"),
        (["2020-01-01"], "", "one timestamp"),
        (["2020-01-01", "2020-01-02", "2020-01-03", "2900-01-03"], "", "gap is from 2020-01-03"),
        (["2020-01-01", "2020-01-02"], "ns", "steps of ns lie between"),
        (["2020-01-01", "2020-01-02"], "fortnight", "freq is 'fortnight'; it must be a pandas"),
        (["2020-01-01", "2020-01-02"], "-1D", "goes back"),
        (["2020-01-01", "2020-01-02", "2020-01-03"], "2D", "the first is 2020-01-02"),
    ],
)
def test_refused(dates, freq, message):
    with pytest.raises(ValueError, match=message):
        make_axis(pd.to_datetime(dates, format="ISO8601"), freq)


def test_a_far_horizon_leaves_the_calendar():
    with pytest.raises(ValueError, match="leave the calendar"):
        dates_ahead(pd.Timestamp("2020-01-01"), pd.offsets.MonthBegin(12), 10**6)


@pytest.mark.parametrize(
    ("cells", "text_format", "expected"),
    [
        (["2020-01-31", "2020-01-31 13:00"], "", ["2020-01-31 00:00", "2020-01-31 13:00"]),
        (["31/12/2020", "01/01/2021"], "", ["2020-12-31", "2021-01-01"]),
        (["01/12/2020", "31/12/2020"], "", ["2020-12-01", "2020-12-31"]),
        (["01/02/2020", "02/02/2020"], "%d/%m/%Y", ["2020-02-01", "2020-02-02"]),
        (["2020-06-01T00:00+02:00", "2020-06-01T00:00Z"], "", ["2020-05-31 22:00", "2020-06-01"]),
        (["2020-01-01", "never"], "", ["2020-01-01", None]),
        (["never", "2020-01-01"], "", [None, "2020-01-01"]),
    ],
)
def test_dates_are_read(cells, text_format, expected):
    found = read_dates(pd.Series(cells, name="t"), text_format)
    expected = pd.Series([pd.Timestamp(one) if one else pd.NaT for one in expected])
    assert list(found.isna()) == list(expected.isna())
    assert list(found.dropna()) == list(expected.dropna())


def test_numbers_are_no_dates():
    with pytest.raises(ValueError, match="timestamp column 't' holds numbers"):
        read_dates(pd.Series([1, 2], name="t"))
