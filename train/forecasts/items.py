"""Tables to series: a regular time axis for each, what comes ahead, and a list of bad ones.

L steps of history, H steps ahead, C targets, K columns of numbers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.offsets import BaseOffset

from moejax.forecasting.memory import require_memory
from moejax.forecasting.series import History
from train.forecasts.columns import ColumnOptions, Columns, find_columns
from train.forecasts.rows import Rows, read_rows, require_dates, require_usable
from train.forecasts.time_axis import TimeAxis, dates_ahead, make_axis


@dataclass(frozen=True, kw_only=True)
class Item:
    """A series to forecast: targets `columns`, dates [L] of the history and [H] ahead.

    `column` is the target where an item has several series, `truth` [C, H] what was held out.
    """

    item_id: str
    columns: tuple[str, ...]
    history: History
    dates: pd.DatetimeIndex
    ahead: pd.DatetimeIndex
    offset: BaseOffset
    column: str = ""
    truth: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Item and column."""
        return f"{self.item_id}/{self.column}" if self.column else self.item_id


@dataclass(frozen=True)
class BadSeries:
    """A series that is left out, and why; `column` where an item has several series."""

    item_id: str
    column: str
    reason: str

    @property
    def name(self) -> str:
        """Item and column."""
        return f"{self.item_id}/{self.column}" if self.column else self.item_id


@dataclass(frozen=True, kw_only=True)
class SeriesTable:
    """All series of a table, in its order. `named_targets`: an item has several targets."""

    items: tuple[Item, ...]
    bad: tuple[BadSeries, ...]
    notes: tuple[str, ...]
    named_targets: bool


def read_items(
    frame: Any, options: ColumnOptions, prediction_length: int, source: str, name: str = "series"
) -> SeriesTable:
    """The series of a DataFrame; ValueError for what is wrong with the table as a whole.

    A series ends where the last row of its item has a target: rows after it lie ahead. `name` is
    that of the one series which a wide table gives with `multivariate`.
    """
    if prediction_length < 1:
        raise ValueError(f"the horizon is {prediction_length}; it must be at least 1 step")
    require_memory(24 * prediction_length, f"a horizon of {prediction_length} steps", "shorten it")
    columns = find_columns(frame, options, source)
    groups = read_rows(frame, columns, options, source)
    axes = _find_axes(groups, frame[columns.timestamp], options.freq)
    if not columns.item and isinstance(axes[0], ValueError):
        raise ValueError(f"{source}: {axes[0]}")
    sets = [columns.targets] if options.multivariate else [(one,) for one in columns.targets]
    named = options.multivariate or bool(columns.item and len(sets) > 1)
    found: list[Item | BadSeries] = []
    for rows, axis in zip(groups, axes, strict=True):
        for targets in sets:
            wide_name = name if options.multivariate else targets[0]
            item_id = rows.item_id if columns.item else wide_name
            column = targets[0] if named and not options.multivariate else ""
            try:
                require_usable(rows, frame, columns.numbers, _used(columns, targets))
                item = _make_item(
                    item_id, rows, axis, targets, columns, prediction_length, options.hold_out
                )
                found.append(replace(item, column=column))
            except ValueError as error:
                found.append(BadSeries(item_id, column, str(error)))
    return SeriesTable(
        items=tuple(one for one in found if isinstance(one, Item)),
        bad=tuple(one for one in found if isinstance(one, BadSeries)),
        notes=_notes(columns, groups, axes),
        named_targets=named,
    )


def _find_axes(groups: Sequence[Rows], written: Any, freq: str) -> list[TimeAxis | ValueError]:
    """The axis of every item, or what is wrong with it; one date takes the others' frequency."""
    axes: list[TimeAxis | ValueError] = []
    same: dict[bytes, TimeAxis] = {}
    for rows in groups:
        key = rows.dates.tobytes()
        try:
            require_dates(rows, written)
            if key not in same:
                same[key] = make_axis(pd.DatetimeIndex(rows.dates), freq)
            axes.append(same[key])
        except ValueError as error:
            axes.append(error)
    known = Counter(axis.offset for axis in axes if isinstance(axis, TimeAxis))
    if len(known) == 1:
        offset = next(iter(known))
        for index, rows in enumerate(groups):
            if len(rows.dates) == 1 and not np.isnat(rows.dates).any():
                date = pd.DatetimeIndex(rows.dates)
                axes[index] = TimeAxis(dates=date, place=np.zeros(1, np.int64), offset=offset)
    return axes


def _used(columns: Columns, targets: tuple[str, ...]) -> list[int]:
    names = (*targets, *columns.known_ahead, *columns.past_only)
    return [columns.numbers.index(name) for name in names]


def _make_item(
    item_id: str,
    rows: Rows,
    axis: TimeAxis | ValueError,
    targets: tuple[str, ...],
    columns: Columns,
    prediction_length: int,
    hold_out: bool,
) -> Item:
    """The series of some targets of an item, without the steps before its first value."""
    if isinstance(axis, ValueError):
        raise axis
    if not rows.item_id and columns.item:
        raise ValueError(f"{len(rows.dates)} rows have no {columns.item}")
    grid_KL = np.full((len(columns.numbers), len(axis.dates)), np.nan)
    grid_KL[:, axis.place] = rows.values.T
    all_targets = grid_KL[: len(columns.targets)]
    end = _last(all_targets) + 1
    if hold_out:
        end -= prediction_length
        if end < 1:
            raise ValueError(
                f"it has {end + prediction_length} steps; none is left before the "
                f"{prediction_length} that are held out"
            )
    of_targets = [columns.numbers.index(name) for name in targets]
    target_CL = grid_KL[of_targets, :end]
    if np.isnan(target_CL).all():
        raise ValueError(f"none of its {min(end, len(rows.dates))} rows has a value")
    start = int((~np.isnan(target_CL)).any(axis=0).argmax())
    last: Any = axis.dates[end - 1]
    ahead = dates_ahead(last, axis.offset, prediction_length)
    first_known = len(columns.targets)
    first_past = first_known + len(columns.known_ahead)
    known_FL = grid_KL[first_known:first_past, start:]
    history = History(
        target=target_CL[:, start:],
        known_ahead=_known(known_FL, columns, end - start, ahead) if len(known_FL) else None,
        past_only=grid_KL[first_past:, start:end] if columns.past_only else None,
        item_id=item_id,
    )
    history.check(prediction_length)
    return Item(
        item_id=item_id,
        columns=targets,
        history=history,
        dates=axis.dates[start:end],
        ahead=ahead,
        offset=axis.offset,
        truth=grid_KL[of_targets, end : end + prediction_length] if hold_out else None,
    )


def _last(values_CL: np.ndarray) -> int:
    """The last step that has a value, or the last of all where none has."""
    present = (~np.isnan(values_CL)).any(axis=0)
    return int(np.flatnonzero(present)[-1]) if present.any() else len(present) - 1


def _known(
    values_FL: np.ndarray, columns: Columns, past: int, ahead: pd.DatetimeIndex
) -> np.ndarray:
    """Covariates [F, past + H]; ValueError where one ends or has a hole ahead."""
    known = values_FL[:, past : past + len(ahead)]
    for name, row in zip(columns.known_ahead, known, strict=True):
        full = np.concatenate([row, np.full(len(ahead) - len(row), np.nan)])
        if np.isnan(full).any():
            raise ValueError(
                f"covariate {name!r} has no value for {ahead[int(np.isnan(full).argmax())]}; it "
                f"must be known until {ahead[-1]}: add rows without target, or name it in "
                "past_covariates"
            )
    return values_FL[:, : past + len(ahead)]


def _notes(
    columns: Columns, groups: Sequence[Rows], axes: Sequence[TimeAxis | ValueError]
) -> tuple[str, ...]:
    notes = []
    if columns.ignored:
        notes.append(f"columns not used: {', '.join(columns.ignored)}")
    unsorted = sum(not rows.was_sorted for rows in groups)
    if unsorted:
        notes.append(f"rows were sorted by time in {unsorted} of {len(groups)} items")
    absent = [axis.absent for axis in axes if isinstance(axis, TimeAxis) and axis.absent]
    if absent:
        notes.append(
            f"{sum(absent)} rows were absent from the time axes of {len(absent)} of {len(groups)} "
            "items; their values count as missing"
        )
    return tuple(notes)
