"""The rows of each item of a table, by date, with the cells that hold no usable number marked.

n rows of an item, K columns of numbers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from train.forecasts.columns import ColumnOptions, Columns
from train.forecasts.time_axis import read_dates
from train.tables import to_numbers

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows [n] of one item: dates, values [n, K], which values are no numbers or too large [n, K].

    `places` [n]: their data rows in the table, from 1. `was_sorted`: they stood by date.
    """

    item_id: str
    dates: np.ndarray
    values: np.ndarray
    unusable: np.ndarray
    places: np.ndarray
    was_sorted: bool


def read_rows(frame: Any, columns: Columns, options: ColumnOptions, source: str) -> list[Rows]:
    """The items in the order of their first rows; one without a name for a wide table.

    ValueError: nothing in a column can be read at all.
    """
    written = frame[columns.timestamp]
    dates = read_dates(written, options.timestamp_format)
    if dates.isna().all():
        raise ValueError(
            f"no cell of the timestamp column {columns.timestamp!r} of {source} can be read as a "
            f"date; the first is {written.iloc[0]!r}; see timestamp_format"
        )
    pairs = [_read_column(frame[name], source) for name in columns.numbers]
    values, unusable = (np.stack(parts, axis=1) for parts in zip(*pairs, strict=True))
    codes, names = np.zeros(len(frame), np.int64), [""]
    if columns.item:
        codes, found = pd.factorize(frame[columns.item].astype("str").fillna(""))
        names = [str(name) for name in found]
    moments = dates.to_numpy()
    order = np.lexsort((moments, codes))
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    items = []
    for name, start, end in zip(names, bounds[:-1], bounds[1:], strict=True):
        at = order[start:end]
        items.append(
            Rows(
                item_id=name,
                dates=moments[at],
                values=values[at],
                unusable=unusable[at],
                places=at + 1,
                was_sorted=bool((np.diff(at) > 0).all()),
            )
        )
    return items


def require_dates(rows: Rows, written: Any) -> None:
    """ValueError for the first row of an item whose date, `written` in the table, is unreadable."""
    unread = np.isnat(rows.dates)
    if unread.any():
        at = rows.places[unread].min()
        raise ValueError(
            f"{int(unread.sum())} timestamps cannot be read as dates of the column's format, the "
            f"first is {written.iloc[at - 1]!r} in data row {at}; see timestamp_format"
        )


def require_usable(rows: Rows, written: Any, names: tuple[str, ...], at: list[int]) -> None:
    """ValueError for the first cell of columns `at` that holds no finite number of float32."""
    for index in at:
        bad = rows.unusable[:, index]
        if bad.any():
            row = int(rows.places[bad].min())
            cell = written[names[index]].iloc[row - 1]
            raise ValueError(
                f"column {names[index]!r} has {int(bad.sum())} cells that are no numbers, infinite "
                f"or over {LARGEST:.2g}, the first is {str(cell)[:40]!r} in data row {row}"
            )


def _read_column(column: Any, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Values [n] as float64, NaN where a cell is empty or unusable, and which are unusable."""
    numbers = to_numbers(column).to_numpy(np.float64, na_value=np.nan)
    unusable = np.isnan(numbers) & column.notna().to_numpy()
    if unusable.any() and not np.isfinite(numbers).any():
        raise ValueError(
            f"column {column.name!r} of {source} holds no number; its first cell is "
            f"{str(column[unusable].iloc[0])[:40]!r}"
        )
    unusable |= np.abs(numbers) > LARGEST
    return np.where(unusable, np.nan, numbers), unusable
