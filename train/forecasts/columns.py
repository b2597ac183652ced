"""Which columns of a table play which part: item, timestamp, targets, covariates."""

import re
from dataclasses import dataclass, replace
from typing import Any

from train.tables import find_date_column, nearest, to_numbers

# what pandas calls a column without a name, such as an index that was written along
_UNNAMED = re.compile(r"Unnamed: \d+$")
ITEM_NAMES = ("item_id", "series_id", "unique_id", "id", "series")
TARGET_NAMES = ("target", "y", "value")


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """What the user says of the columns; empty means: found by name and content.

    `item` makes the table long (a row is an item at a time), else it is wide (a column is a
    series). `multivariate` joins the targets as variates of one series. `freq` is a pandas
    frequency, `timestamp_format` a strptime format. `hold_out` keeps the last steps of every
    series back, as many as are forecast.
    """

    item: str = ""
    timestamp: str = ""
    targets: tuple[str, ...] = ()
    known_ahead: tuple[str, ...] = ()
    past_only: tuple[str, ...] = ()
    multivariate: bool = False
    freq: str = ""
    timestamp_format: str = ""
    hold_out: bool = False


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The parts found; `item` is empty for a wide table, `ignored` plays none."""

    item: str
    timestamp: str
    targets: tuple[str, ...]
    known_ahead: tuple[str, ...]
    past_only: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    @property
    def numbers(self) -> tuple[str, ...]:
        """Targets, covariates known ahead, covariates of the past."""
        return self.targets + self.known_ahead + self.past_only


def find_columns(frame: Any, options: ColumnOptions, source: str) -> Columns:
    """The part of every column of a frame; ValueError for absent, doubled or missing ones."""
    for part, names in (
        ("item_column", (options.item,) if options.item else ()),
        ("target_columns", options.targets),
        ("known_covariates", options.known_ahead),
        ("past_covariates", options.past_only),
    ):
        _require(names, frame, part, source)
    item = options.item or next((name for name in ITEM_NAMES if name in frame.columns), "")
    rest = frame.drop(columns=item) if item else frame
    timestamp = find_date_column(rest, options.timestamp, source, "timestamp_column")
    columns = Columns(
        item=item,
        timestamp=timestamp,
        targets=options.targets,
        known_ahead=options.known_ahead,
        past_only=options.past_only,
    )
    _require_distinct(columns)
    free = [name for name in rest.columns if name not in (timestamp, *columns.numbers)]
    if not columns.targets:
        columns = replace(columns, targets=_find_targets(frame, free, item, source))
    if options.multivariate and len(columns.targets) == 1:
        raise ValueError(
            f"multivariate joins several columns to one series, but {source} has one target "
            f"column, {columns.targets[0]!r}; name several with target_columns"
        )
    return replace(columns, ignored=tuple(name for name in free if name not in columns.targets))


def _find_targets(frame: Any, free: list[str], item: str, source: str) -> tuple[str, ...]:
    """In a wide table all columns with numbers, in a long one the usual name or the only one."""
    if item:
        for name in TARGET_NAMES:
            if name in free:
                return (name,)
    found = [name for name in free if _has_numbers(frame[name]) and not _UNNAMED.match(name)]
    if not found:
        raise ValueError(
            f"{source} has no column of numbers to forecast. Columns: {', '.join(frame.columns)} "
            "(--decimal , or another --separator ?)"
        )
    if item and len(found) > 1:
        raise ValueError(
            f"{source} has several columns of numbers, {', '.join(found)}, and none is called "
            f"{' or '.join(TARGET_NAMES)}; name what to forecast with target_columns"
        )
    return tuple(found)


def _has_numbers(column: Any) -> bool:
    """Also a column without any cell: a series that is listed as empty."""
    return bool(column.isna().all() or to_numbers(column).notna().any())


def _require(names: tuple[str, ...], frame: Any, part: str, source: str) -> None:
    for name in names:
        if name not in frame.columns:
            raise ValueError(
                f"{part} names {name!r}, not a column of {source}.{nearest(name, frame.columns)} "
                f"Columns: {', '.join(frame.columns)}"
            )


def _require_distinct(columns: Columns) -> None:
    names = [columns.timestamp, *([columns.item] if columns.item else []), *columns.numbers]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(
            f"column {', '.join(map(repr, doubled))} is given several parts; a column is the item, "
            "the timestamp, a target, a covariate known ahead or one of the past"
        )
