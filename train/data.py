"""From a series to training data: calendar features, scaler, splits, windows, order of batches.

A window is only the index of its first row: the scaled series stays whole (on the device) and
windows are cut from it inside jit. Axes: N rows, S seq_len, P pred_len, C channels, F features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import grain
import numpy as np
import pandas as pd

from train.sources import PUBLISHED, DataConfig, load_series, load_temperatures, uses_months
from train.tables import Series

__all__ = [
    "PUBLISHED",
    "DataConfig",
    "Dataset",
    "Part",
    "Scaler",
    "Series",
    "Splits",
    "batches",
    "load_series",
    "load_temperatures",
    "prepare",
    "time_features",
    "windows",
]

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
DAYS_OF_MONTHS = {"train": 360, "val": 120, "test": 120}
NUM_TIME_FEATURES = {"h": 4, "t": 5}


def time_features(dates: np.ndarray, freq: Literal["h", "t"] = "h") -> np.ndarray:
    """Calendar features in [-0.5, 0.5] of dates [N]: float64 [N,4] (h) or [N,5] (t, minute first).

    Order: (minute,) hour, weekday, day of month, day of year.
    """
    if freq not in NUM_TIME_FEATURES:
        raise ValueError(f"freq is {freq!r}; allowed: 'h' (4 features), 't' (5, minute first)")
    index = pd.DatetimeIndex(dates)
    features = [
        index.hour / 23 - 0.5,
        index.day_of_week / 6 - 0.5,
        (index.day - 1) / 30 - 0.5,
        (index.day_of_year - 1) / 365 - 0.5,
    ]
    if freq == "t":
        features.insert(0, index.minute / 59 - 0.5)
    return np.stack([np.asarray(feature, np.float64) for feature in features], axis=1)


@dataclass(frozen=True)
class Scaler:
    """Per-column z-score; `mean` and `scale` are float64 [C]."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, columns: tuple[str, ...] | None = None) -> "Scaler":
        """Mean and population deviation of rows [N,C]; ValueError for a constant column."""
        scaler = cls(values.mean(axis=0), values.std(axis=0))
        constant = np.flatnonzero(np.ptp(values, axis=0) == 0)
        if constant.size:
            names = [columns[i] if columns else str(i) for i in constant]
            raise ValueError(
                f"constant in the training rows, so they cannot be scaled: {', '.join(names)}; "
                "leave them out with data.columns, or pass --set data.drop_constant=true"
            )
        return scaler

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Values [...,C] in scaled space."""
        return (values - self.mean) / self.scale

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Scaled values [...,C] in original units."""
        return values * self.scale + self.mean


@dataclass(frozen=True)
class Splits:
    """Rows [start, stop) of each part; windows of val and test reach back into the part before."""

    train: tuple[int, int]
    val: tuple[int, int]
    test: tuple[int, int]

    @classmethod
    def ratio(cls, num_rows: int) -> "Splits":
        """70/10/20 %, the middle part taking the rounding."""
        num_train, num_test = int(num_rows * 0.7), int(num_rows * 0.2)
        return cls(
            (0, num_train), (num_train, num_rows - num_test), (num_rows - num_test, num_rows)
        )

    @classmethod
    def months(cls, num_rows: int, rows_per_day: int) -> "Splits":
        """12/4/4 months of 30 days; later rows are unused. ValueError for a shorter series."""
        stops = np.cumsum([DAYS_OF_MONTHS[part] * rows_per_day for part in PARTS]).tolist()
        if num_rows < stops[-1]:
            raise ValueError(
                f"a split by months needs {stops[-1]} rows (600 days of {rows_per_day}); the "
                f"series has {num_rows}; use --set data.split=ratio"
            )
        return cls((0, stops[0]), (stops[0], stops[1]), (stops[1], stops[2]))

    def starts(self, part: Part, seq_len: int, pred_len: int) -> np.ndarray:
        """First rows int32 of all windows of a part; ValueError when it is too short for one."""
        start, stop = getattr(self, part)
        context = min(start, seq_len)
        count = stop - (start - context) - seq_len - pred_len + 1
        if count < 1:
            raise ValueError(
                f"the {part} part has {stop - start} rows (and {context} before it), "
                f"too short for a window of seq_len {seq_len} + pred_len {pred_len}; use shorter "
                "windows or a longer series"
            )
        return np.arange(start - context, start - context + count, dtype=np.int32)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A series ready for training: scaled rows [N,C], marks [N,F] in float32, window starts."""

    series: Series
    scaler: Scaler
    splits: Splits
    scaled: np.ndarray
    marks: np.ndarray
    seq_len: int
    pred_len: int
    starts: dict[Part, np.ndarray]

    @property
    def source(self) -> str:
        """Where the series comes from."""
        return self.series.source

    @property
    def notes(self) -> tuple[str, ...]:
        """What was replaced, repaired or ignored."""
        return self.series.notes

    def describe(self) -> str:
        """Where the data comes from and how much there is, in a line."""
        series = self.series
        counts = ", ".join(f"{len(starts)} {part}" for part, starts in self.starts.items())
        size = f"{series.num_rows} rows of {series.num_channels} columns"
        return f"data: {series.name} from {series.source}, {size}; windows: {counts}"

    @property
    def targets(self) -> slice:
        """Which channels are scored: all in M, the last in S and MS."""
        return slice(self.series.num_channels - self.series.num_targets, self.series.num_channels)

    def with_series(self, series: Series, freq: Literal["h", "t"]) -> "Dataset":
        """Another series with the same columns, scaled as this one; all its windows are "test"."""
        splits = Splits((0, 0), (0, 0), (0, series.num_rows))
        return replace(
            self,
            series=series,
            splits=splits,
            scaled=self.scaler.transform(series.values).astype(np.float32),
            marks=time_features(series.dates, freq).astype(np.float32),
            starts={"test": splits.starts("test", self.seq_len, self.pred_len)},
        )

    def rows_per_day(self) -> int:
        """Rows in a day, at least 1."""
        return max(1, round(86400 / self.series.step_seconds()))

    def season(self) -> int:
        """Rows of one season for the seasonal-naive error: a day; for daily data a week, else 1."""
        if self.rows_per_day() > 1:
            return self.rows_per_day()
        return 7 if abs(self.series.step_seconds() - 86400) < 1 else 1


def prepare(config: DataConfig, *, seq_len: int, pred_len: int) -> Dataset:
    """Load, split, scale; ValueError for every problem with the input."""
    series = load_series(config)
    splits = _split(config, series)
    starts: dict[Part, np.ndarray] = {
        part: splits.starts(part, seq_len, pred_len) for part in PARTS
    }
    train = slice(*splits.train)
    if config.drop_constant:
        series = _without_constant(series, train)
    scaler = Scaler.fit(series.values[train], series.columns)
    return Dataset(
        series=series,
        scaler=scaler,
        splits=splits,
        scaled=scaler.transform(series.values).astype(np.float32),
        marks=time_features(series.dates, config.freq).astype(np.float32),
        seq_len=seq_len,
        pred_len=pred_len,
        starts=starts,
    )


def windows(values: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Windows [W,length,C] of rows [N,C], on the host; for tests, plots and calibration."""
    return values[np.asarray(starts)[:, None] + np.arange(length)[None, :]]


def _split(config: DataConfig, series: Series) -> Splits:
    if not uses_months(config, series):
        return Splits.ratio(series.num_rows)
    return Splits.months(series.num_rows, max(1, round(86400 / series.step_seconds())))


def _without_constant(series: Series, train: slice) -> Series:
    varies = np.ptp(series.values[train], axis=0) > 0
    if varies.all():
        return series
    first = series.num_channels - series.num_targets
    if not varies[first:].any():
        raise ValueError("every column to forecast is constant in the training rows")
    dropped = [name for name, keep in zip(series.columns, varies, strict=True) if not keep]
    return replace(
        series,
        values=series.values[:, varies],
        columns=tuple(name for name, keep in zip(series.columns, varies, strict=True) if keep),
        num_targets=int(varies[first:].sum()),
        notes=(*series.notes, f"constant columns dropped: {', '.join(dropped)}"),
    )


class _Order:
    """Shuffled window indices by random access: element i is call i, int32 [steps,batch].

    Epochs are cut into calls of `steps_per_call` steps, the last possibly shorter. A pass over the
    data is as many full batches as there are; what does not fill one waits for another pass, whose
    order is different. An epoch is a pass, or so many steps of one pass after the other.
    """

    def __init__(
        self,
        num_windows: int,
        batch_size: int,
        steps_per_call: int,
        steps_per_epoch: int,
        seed: int,
    ):
        self.num_windows, self.batch_size, self.seed = num_windows, batch_size, seed
        self.steps_per_pass = num_windows // batch_size
        self.steps_per_epoch = steps_per_epoch or self.steps_per_pass
        self.steps_per_call = min(steps_per_call, self.steps_per_epoch)
        self.calls = -(-self.steps_per_epoch // self.steps_per_call)
        self._pass, self._indices = -1, np.zeros((0, batch_size), np.int32)

    def __len__(self) -> int:
        return self.calls * 1_000_000

    def __getitem__(self, index) -> np.ndarray:
        epoch, call = divmod(int(index), self.calls)
        first = call * self.steps_per_call
        last = min(first + self.steps_per_call, self.steps_per_epoch)
        steps = epoch * self.steps_per_epoch + np.arange(first, last)
        numbers, places = np.divmod(steps, self.steps_per_pass)
        return np.concatenate(
            [self._in_pass(one)[places[numbers == one]] for one in np.unique(numbers)]
        )

    def _in_pass(self, number: int) -> np.ndarray:
        if number != self._pass:
            rng = np.random.default_rng([self.seed, number])
            order = rng.permutation(self.num_windows)[: self.steps_per_pass * self.batch_size]
            self._indices = order.astype(np.int32).reshape(self.steps_per_pass, self.batch_size)
            self._pass = number
        return self._indices


def batches(
    num_windows: int,
    *,
    batch_size: int,
    steps_per_call: int,
    seed: int,
    steps_per_epoch: int = 0,
) -> Iterator[np.ndarray]:
    """An endless grain iterator over window indices int32 [steps,batch], with a saveable state.

    An epoch of n steps is ceil(n / steps_per_call) elements; without `steps_per_epoch` it is one
    pass over the windows. ValueError when no batch can be filled.
    """
    if batch_size > num_windows:
        raise ValueError(
            f"batch_size {batch_size} is more than the {num_windows} training windows; lower it"
        )
    order = _Order(num_windows, batch_size, steps_per_call, steps_per_epoch, seed)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(grain.MapDataset.source(order).to_iter_dataset(options))
