"""The time axis of a series: its step, the place of every row on it, and the dates to come."""

import functools
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.offsets import BaseOffset

SECOND, DAY = 1_000_000, 86_400_000_000
MAX_ABSENT = 10


@dataclass(frozen=True, kw_only=True)
class TimeAxis:
    """`dates` [L] without holes, an `offset` apart; `place` [n]: which of them the rows have."""

    dates: pd.DatetimeIndex
    place: np.ndarray
    offset: BaseOffset

    @property
    def absent(self) -> int:
        """How many dates no row has."""
        return len(self.dates) - len(self.place)


def read_dates(column: Any, text_format: str = "") -> pd.Series:
    """A column of dates as naive datetimes (UTC where it has time zones), NaT for other cells.

    ValueError for a column of numbers or of a format that pandas refuses.
    """
    if pd.api.types.is_numeric_dtype(column):
        raise ValueError(
            f"timestamp column {column.name!r} holds numbers ({column.iloc[0]} ...), not dates; "
            "write dates such as 2020-01-31 13:00, or name another column with timestamp_column"
        )
    tries: list[dict[str, Any]] = [{"format": text_format}]
    if not text_format:
        tries = [{"format": "ISO8601"}, {}, {"dayfirst": True}]
    best = None
    for options in tries:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = pd.to_datetime(column, errors="coerce", utc=True, **options)
        if best is None or found.notna().sum() > best.notna().sum():
            best = found
        if best.notna().all():
            break
    assert best is not None
    return best.dt.tz_localize(None).dt.as_unit("us")


def make_axis(dates: pd.DatetimeIndex, freq: str = "") -> TimeAxis:
    """The axis on which increasing dates [n] lie; `freq` is a pandas alias, else it is inferred.

    ValueError: repeated dates, dates that lie on no axis, one date without `freq`.
    """
    dates = dates.as_unit("us")
    steps = np.diff(dates.asi8)
    if (steps == 0).any():
        at = int((steps == 0).argmax())
        raise ValueError(
            f"{int((steps == 0).sum())} timestamps are repeated, the first is {dates[at]}; keep "
            "one row a timestamp (the end of summer time repeats an hour: use UTC)"
        )
    if freq:
        return _axis(dates, _alias(freq))
    if len(steps) == 0:
        raise ValueError("there is one timestamp, which tells no frequency; give it with freq")
    offset = _monthly(dates) or _business(dates, steps) or _fixed(steps)
    if offset is None:
        sizes, counts = np.unique(steps, return_counts=True)
        usual = int(sizes[counts.argmax()])
        at = int((steps != usual).argmax())
        raise ValueError(
            f"the timestamps are irregular: {int((steps != usual).sum())} of {len(steps)} steps "
            f"differ from the usual {pd.Timedelta(usual, 'us')}, the first after {dates[at]}; "
            "resample the series first, or give its freq"
        )
    return _axis(dates, offset)


@functools.lru_cache(maxsize=256)
def dates_ahead(last: pd.Timestamp, offset: BaseOffset, steps: int) -> pd.DatetimeIndex:
    """The dates after `last`; ValueError where they leave the calendar."""
    try:
        return pd.date_range(last, periods=steps + 1, freq=offset)[1:].as_unit("us")
    except (OverflowError, ValueError, pd.errors.OutOfBoundsDatetime) as error:
        raise ValueError(
            f"{steps} steps of {offset.freqstr} after {last} leave the calendar: {error}"
        ) from error


def season_length(offset: BaseOffset) -> int:
    """Steps of the usual season: a minute of seconds, a day of minutes or hours, a week of days,
    a year of weeks or months; 1 for other steps.
    """
    if isinstance(offset, pd.offsets.BusinessDay):
        return 5
    base = pd.Timestamp("2001-01-01") + offset
    step = ((base + 4 * offset).value - base.value) / 4000
    if step < SECOND or 1.5 * DAY < step < 6.5 * DAY:
        return 1
    seasons = ((60 * SECOND, 60 * SECOND), (DAY, DAY), (1.5 * DAY, 7 * DAY))
    season = next((size for limit, size in seasons if step < limit), 365 * DAY)
    return max(1, round(season / step))


def _alias(freq: str) -> BaseOffset:
    allowed = "it must be a pandas frequency such as h, 15min, D, B, W-SUN, MS"
    try:
        offset = pd.tseries.frequencies.to_offset(freq)
    except ValueError as error:
        raise ValueError(f"freq is {freq!r}; {allowed}") from error
    if offset.n < 1:
        raise ValueError(f"freq is {freq!r}, which goes back or stands still; {allowed}")
    return offset


def _axis(dates: pd.DatetimeIndex, offset: BaseOffset) -> TimeAxis:
    """All dates from the first to the last; ValueError for too many, or for some off the axis."""
    first: Any = dates[0]
    last: Any = dates[-1]
    try:
        num_steps = (last - first) / (first + offset - first)
    except (OverflowError, pd.errors.OutOfBoundsDatetime) as error:
        raise ValueError(f"a step of {offset.freqstr} leaves the calendar") from error
    if num_steps > MAX_ABSENT * len(dates) + 1000:
        gaps = np.diff(dates.asi8)
        at = int(gaps.argmax())
        raise ValueError(
            f"{num_steps:,.0f} steps of {offset.freqstr} lie between the first and the last of "
            f"{len(dates)} timestamps; the widest gap is from {dates[at]} to {dates[at + 1]}"
        )
    full = pd.date_range(dates[0], dates[-1], freq=offset).as_unit("us")
    place = full.get_indexer(dates)
    if place.min() < 0:
        bad = dates[place < 0]
        raise ValueError(
            f"{len(bad)} of {len(dates)} timestamps do not lie on steps of {offset.freqstr} from "
            f"{dates[0]}, the first is {bad[0]}; resample the series first"
        )
    return TimeAxis(dates=full, place=place, offset=offset)


def _monthly(dates: pd.DatetimeIndex) -> BaseOffset | None:
    """Whole months apart, on the same day of the month or all on the last one."""
    if len(set(dates.time)) > 1 or np.diff(dates.asi8).min() < 28 * DAY:
        return None
    months = np.diff(np.asarray(dates.year * 12 + dates.month))
    sizes, counts = np.unique(months, return_counts=True)
    step = int(sizes[counts.argmax()])
    if (months % step).any():
        return None
    if np.asarray(dates.is_month_end).all():
        return pd.offsets.MonthEnd(step)
    if len(set(dates.day)) > 1:
        return None
    return pd.offsets.MonthBegin(step) if dates.day[0] == 1 else pd.DateOffset(months=step)


def _business(dates: pd.DatetimeIndex, steps: np.ndarray) -> BaseOffset | None:
    """Days without any weekend, over at least one."""
    weekends = dates.day_of_week >= 5
    over = steps.max() >= 3 * DAY and np.median(steps) == DAY
    if (steps % DAY).any() or weekends.any() or not over:
        return None
    return pd.offsets.BusinessDay()


def _fixed(steps: np.ndarray) -> BaseOffset | None:
    """One step of fixed size, of which most steps are one and the others multiples."""
    sizes, counts = np.unique(steps, return_counts=True)
    step = int(sizes[counts.argmax()])
    if (steps % step).any() or counts.max() * 2 <= len(steps):
        return None
    return pd.tseries.frequencies.to_offset(timedelta(microseconds=step))
