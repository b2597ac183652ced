"""Reading a table of dated numbers, strictly: every problem is an error naming place and cure."""

import difflib
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

_DATE_NAMES = ("date", "datetime", "date time", "timestamp", "time", "ds")


@dataclass(frozen=True, kw_only=True)
class OptionNames:
    """What the options that messages advise are called."""

    file: str = "data.csv"
    separator: str = "--set data.separator=';'"
    date_column: str = "data.date_column"


TRAIN_OPTIONS = OptionNames()


@dataclass(frozen=True, kw_only=True)
class Series:
    """A multivariate series: `values` float64 [N,C], `dates` datetime64[s] [N].

    The last `num_targets` columns are forecast; `notes` says what was repaired or ignored.
    """

    name: str
    values: np.ndarray
    dates: np.ndarray
    columns: tuple[str, ...]
    source: str
    num_targets: int
    notes: tuple[str, ...] = ()
    fallback_for: str = ""

    @property
    def num_rows(self) -> int:
        return self.values.shape[0]

    @property
    def num_channels(self) -> int:
        return self.values.shape[1]

    def step_seconds(self) -> float:
        """The usual time between two rows (the median)."""
        return float(np.median(np.diff(self.dates).astype(np.float64)))


def read_published(text: bytes, *, name: str, source: str) -> Series:
    """A published CSV as it is: a date column, then numbers; the time axis is not checked."""
    frame = pd.read_csv(io.BytesIO(text))
    dates = pd.DatetimeIndex(frame[frame.columns[0]])
    return Series(
        name=name,
        values=frame[frame.columns[1:]].to_numpy(np.float64),
        dates=dates.to_numpy("datetime64[s]"),
        columns=tuple(frame.columns[1:]),
        source=source,
        num_targets=frame.shape[1] - 1,
    )


def read_table(
    path: Path,
    *,
    separator: str = ",",
    date_column: str = "",
    columns: tuple[str, ...] = (),
    interpolate: bool = False,
) -> Series:
    """The user's own CSV (.csv or .csv.gz), checked.

    ValueError: missing or unreadable file, no date column, no numeric column, cells that are not
    numbers, missing values or gaps (unless `interpolate`), dates that repeat or go back.
    """
    frame = read_frame(path, separator)
    date_name = find_date_column(frame, date_column, path)
    dates = _parse_dates(frame[date_name], date_name, path)
    _require_increasing(dates, path)
    names, values, ignored = _numeric(frame.drop(columns=date_name), columns, path)
    dates, values, inserted = _regular(dates, values, interpolate, path)
    values, filled = _fill(names, values, interpolate, path)
    notes = [f"columns without numbers ignored: {', '.join(ignored)}"] if ignored else []
    if inserted or filled:
        cells = f"{filled} of {values.size} values interpolated"
        notes.append(f"{cells}; {inserted} of {len(values)} rows were absent from the file")
    return Series(
        name=path.name.split(".")[0],
        values=values,
        dates=dates,
        columns=tuple(names),
        source=str(path),
        num_targets=len(names),
        notes=tuple(notes),
    )


def nearest(name: str, known: Any) -> str:
    """' Did you mean ...?' for a misspelt name, or nothing."""
    near = difflib.get_close_matches(name, [str(one) for one in known], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def read_frame(
    path: Path,
    separator: str,
    *,
    min_rows: int = 3,
    text_columns: tuple[str, ...] = (),
    decimal: str = ".",
    options: OptionNames = TRAIN_OPTIONS,
) -> Any:
    """The DataFrame of a CSV, plain or gzip, with names of columns as text; ValueError if none.

    Those `text_columns` that are there keep their cells as written: 007, NA.
    """
    if not path.is_file():
        raise ValueError(
            f"data file {str(path)!r} does not exist or is not a file; see {options.file}"
        )
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        frame = pd.read_csv(io.BytesIO(text), sep=separator, decimal=decimal)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"data file {str(path)!r} is empty") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise ValueError(f"data file {str(path)!r} cannot be read as CSV: {error}") from error
    if frame.shape[0] < min_rows:
        raise ValueError(
            f"data file {str(path)!r} has {frame.shape[0]} rows; at least {min_rows} are needed"
        )
    if frame.shape[1] < 2:
        raise ValueError(
            f"data file {str(path)!r} has one column, {str(frame.columns[0])!r}, when split at "
            f"{separator!r}; a date and a number column are needed ({options.separator} ?)"
        )
    frame.columns = [str(name) for name in frame.columns]
    for name in text_columns:
        if name in frame.columns:
            written = {"usecols": [name], "dtype": str, "keep_default_na": False}
            frame[name] = pd.read_csv(io.BytesIO(text), sep=separator, **written)[name]
    return frame


def find_date_column(
    frame: Any, wanted: str, path: Path | str, option: str = TRAIN_OPTIONS.date_column
) -> str:
    """The column `wanted`, or one with a usual name, or the first that reads as dates."""
    listed = f"Columns: {', '.join(frame.columns)}"
    if wanted:
        if wanted in frame.columns:
            return wanted
        hint = nearest(wanted, frame.columns)
        raise ValueError(f"{option} is {wanted!r}, not a column of {path}.{hint} {listed}")
    lower = {name.strip().lower(): name for name in frame.columns}
    for name in _DATE_NAMES:
        if name in lower:
            return lower[name]
    for name in frame.columns:
        column = frame[name].head(100)
        if pd.api.types.is_numeric_dtype(column):
            continue
        if pd.to_datetime(column, errors="coerce", format="mixed").notna().all():
            return name
    raise ValueError(f"{path} has no column of dates; name one with {option}. {listed}")


def _parse_dates(column: Any, name: str, path: Path) -> np.ndarray:
    if pd.api.types.is_numeric_dtype(column):
        raise ValueError(
            f"date column {name!r} of {path} holds numbers ({column.iloc[0]} ...), not dates; "
            "write dates such as 2020-01-31 13:00, or name another column with data.date_column"
        )
    try:
        dates = pd.to_datetime(column, errors="coerce", utc=True)
    except ValueError as error:
        raise ValueError(f"date column {name!r} of {path} cannot be read: {error}") from error
    bad = dates.isna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{int(bad.sum())} cells of the date column {name!r} of {path} are not dates of one "
            f"format; the first is {column.iloc[row]!r} in data row {row + 1}"
        )
    return dates.dt.tz_localize(None).to_numpy("datetime64[s]")


def to_numbers(column: Any) -> Any:
    """A column's numbers, NaN for other cells; whole numbers beyond float64 become infinite."""
    try:
        return pd.to_numeric(column, errors="coerce")
    except OverflowError:
        return pd.to_numeric(column.astype("str"), errors="coerce")


def _numeric(
    frame: Any, wanted: tuple[str, ...], path: Path
) -> tuple[list[str], np.ndarray, list[str]]:
    """Names and values [N,C] of the numeric columns, and names of the columns without numbers."""
    kept: dict[str, np.ndarray] = {}
    ignored = []
    for name in frame.columns:
        if wanted and name not in wanted:
            continue
        column = frame[name]
        numbers = to_numbers(column)
        bad = (numbers.isna() & column.notna()).to_numpy()
        if not bad.any():
            kept[name] = numbers.to_numpy(np.float64, na_value=np.nan)
        elif numbers.notna().any():
            row = int(bad.argmax())
            raise ValueError(
                f"column {name!r} of {path} has {int(bad.sum())} cells that are not numbers, first "
                f"{column.iloc[row]!r} in data row {row + 1}; correct them, or choose the columns "
                "with data.columns"
            )
        else:
            ignored.append(name)
    if not kept:
        raise ValueError(
            f"{path} has no numeric column beside the date. Columns: {', '.join(frame.columns)} "
            "(decimal comma? another separator: see data.separator)"
        )
    return list(kept), np.stack(list(kept.values()), axis=1), ignored


def _require_increasing(dates: np.ndarray, path: Path) -> None:
    steps = np.diff(dates).astype(np.int64)
    if (steps < 0).any():
        row = int((steps < 0).argmax()) + 1
        raise ValueError(
            f"the dates of {path} go back in data row {row + 1}: {dates[row - 1]}, then "
            f"{dates[row]}; sort the rows by date"
        )
    if (steps == 0).any():
        row = int((steps == 0).argmax()) + 1
        raise ValueError(
            f"{path} has {int((steps == 0).sum())} repeated dates, the first {dates[row]} in data "
            f"row {row + 1}; keep one row a date (the end of summer time repeats an hour: use UTC)"
        )


def _regular(
    dates: np.ndarray, values: np.ndarray, interpolate: bool, path: Path
) -> tuple[np.ndarray, np.ndarray, int]:
    """Dates and values on a regular time axis (NaN where inserted), and the rows inserted."""
    steps = np.diff(dates).astype(np.int64)
    if np.all(steps == steps[0]) or pd.infer_freq(pd.DatetimeIndex(dates)) is not None:
        return dates, values, 0
    sizes, counts = np.unique(steps, return_counts=True)
    step = int(sizes[counts.argmax()])
    row = int((steps != step).argmax())
    what = (
        f"{path} has {int((steps != step).sum())} time steps other than the usual {step} s, the "
        f"first after {dates[row]} (data row {row + 1})"
    )
    if np.any(steps % step):
        raise ValueError(f"{what}; the dates do not lie on one grid: resample the file first")
    place = np.concatenate([[0], np.cumsum(steps // step)])
    absent = int(place[-1]) + 1 - len(dates)
    if not interpolate:
        raise ValueError(
            f"{what}; {absent} rows are absent: fill them, or pass --set data.interpolate=true"
        )
    full = np.full((int(place[-1]) + 1, values.shape[1]), np.nan)
    full[place] = values
    return dates[0] + step * np.arange(len(full)).astype("timedelta64[s]"), full, absent


def _fill(
    names: list[str], values: np.ndarray, interpolate: bool, path: Path
) -> tuple[np.ndarray, int]:
    """Values [N,C] with missing cells interpolated (ends: nearest), and how many they were."""
    missing = ~np.isfinite(values)
    total = int(missing.sum())
    if total == 0:
        return values, 0
    empty = [name for name, column in zip(names, missing.T, strict=True) if column.all()]
    if empty:
        raise ValueError(f"columns of {path} without any value: {', '.join(empty)}; leave them out")
    if not interpolate:
        worst = int(missing.sum(axis=0).argmax())
        raise ValueError(
            f"{path} has {total} missing or infinite values, most in column {names[worst]!r} "
            f"({int(missing[:, worst].sum())}, the first in data row "
            f"{int(missing[:, worst].argmax()) + 1}); fill them, or pass "
            "--set data.interpolate=true"
        )
    rows, filled = np.arange(len(values)), values.copy()
    for column, holes in zip(filled.T, missing.T, strict=True):
        column[holes] = np.interp(rows[holes], rows[~holes], column[~holes])
    return filled, total
