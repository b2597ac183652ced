"""Sets of series: values with their missing cells, the parts in time, the season."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from train.data import DataConfig, Splits
from train.forecasts.columns import ColumnOptions
from train.forecasts.csv import read_csv
from train.forecasts.time_axis import season_length
from train.series_sets.config import CSV, SetsConfig
from train.sources import load_ettm1_head, load_series
from train.tables import Series

SENTINEL = -9999.0
MONTHS = ("etth1", "etth2")
HEAD = "ettm1_head"


@dataclass(frozen=True, kw_only=True)
class SeriesSet:
    """Series on one time axis. values float64 [N, C], NaN where missing; `season`: its steps."""

    name: str
    values: np.ndarray
    columns: tuple[str, ...]
    splits: Splits
    season: int
    source: str
    notes: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """Steps."""
        return len(self.values)

    @property
    def num_columns(self) -> int:
        """Variates."""
        return self.values.shape[1]


def season_of(step_seconds: float) -> int:
    """Steps of a day; for daily rows a week, for monthly ones a year, else 1."""
    per_day = round(86400 / step_seconds)
    if per_day > 1:
        return per_day
    if abs(step_seconds - 86400) < 1:
        return 7
    return 12 if 28 * 86400 <= step_seconds <= 31 * 86400 else 1


def drawn_set(name: str, values: np.ndarray, season: int) -> SeriesSet:
    """Series [N, C] from a generator, all of them for training."""
    return SeriesSet(
        name=name,
        values=values,
        columns=tuple(str(i) for i in range(values.shape[1])),
        splits=_all_training(len(values)),
        season=season,
        source="generator",
    )


def load_sets(
    config: SetsConfig,
    *,
    multivariate: bool = False,
    generators: Mapping[str, Callable[[], SeriesSet]] | None = None,
) -> tuple[list[SeriesSet], list[str]]:
    """The sets of a config that are to be had, and notes on those that are not.

    `multivariate`: columns of one item of the user's file stay together. `generators`: by name, of
    sources that are no data. ValueError when none is there, and for every problem with the file.
    """
    if config.csv:
        return _own(config, multivariate)
    sets, notes = [], []
    for name in config.sources:
        make = (generators or {}).get(name)
        found = make() if make else _named(name, config)
        if isinstance(found, SeriesSet):
            sets.append(found)
        else:
            notes.append(found)
    if not sets:
        raise ValueError(f"none of data.sources is to be had. {' '.join(notes)}")
    return sets, notes


def _named(name: str, config: SetsConfig) -> SeriesSet | str:
    """A set by name, or why it is not there."""
    if name == HEAD:
        series = load_ettm1_head()
        if series is None:
            return "ettm1_head is left out: MOEJAX_DATA names no folder with ETTm1_head.csv(.gz)"
    else:
        series = load_series(DataConfig(name=name, allow_download=config.allow_download))
        if series.fallback_for:
            return f"{name} is left out: {series.notes[0].split(': ', 1)[1].split('. ')[0]}"
    return _set(name, series)


def _set(name: str, series: Series) -> SeriesSet:
    rows = series.num_rows
    if name == HEAD:
        splits = _all_training(rows)
    elif name in MONTHS:
        splits = Splits.months(rows, 24)
    else:
        splits = Splits.ratio(rows)
    values = np.array(series.values, np.float64)
    notes = () if name == "weather" else series.notes
    sentinels = (values == SENTINEL) if name == "weather" else np.zeros(values.shape, bool)
    if sentinels.any():
        values[sentinels] = np.nan
        notes = (f"weather: {int(sentinels.sum())} sentinels {SENTINEL:g} count as missing",)
    return SeriesSet(
        name=name,
        values=values,
        columns=series.columns,
        splits=splits,
        season=season_of(series.step_seconds()),
        source=series.source,
        notes=notes,
    )


def _own(config: SetsConfig, multivariate: bool) -> tuple[list[SeriesSet], list[str]]:
    """The series of the user's CSV, wide or long, each split in time by itself."""
    options = ColumnOptions(
        item=config.item_column,
        timestamp=config.date_column,
        targets=config.columns,
        multivariate=multivariate,
    )
    table = read_csv(config.csv, options, 1, separator=config.separator)
    sets = [
        SeriesSet(
            name=CSV,
            values=np.asarray(item.history.target, np.float64).T,
            columns=tuple(f"{item.item_id}/{name}" for name in item.columns),
            splits=Splits.ratio(item.history.target.shape[1]),
            season=season_length(table.items[0].offset),
            source=config.csv,
        )
        for item in table.items
    ]
    bad = [f"series {one.name} is left out: {one.reason}" for one in table.bad]
    if not sets:
        raise ValueError(f"{config.csv} holds no series to train on. {'; '.join(bad)}")
    return sets, [*table.notes, *bad]


def _all_training(rows: int) -> Splits:
    return Splits((0, rows), (rows, rows), (rows, rows))
