"""What every probabilistic forecaster takes and gives, as plain numpy.

L steps of history, H steps of forecast, C targets, F covariates known ahead, G covariates of the
past, N samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class History:
    """One series up to now. NaN is a missing value.

    target [C, L]; known_ahead [F, L + H], covariates whose future is known; past_only [G, L].
    """

    target: np.ndarray
    known_ahead: np.ndarray | None = None
    past_only: np.ndarray | None = None
    item_id: str = ""

    def check(self, prediction_length: int) -> None:
        """ValueError for a series that nobody can forecast: shapes, no value, values too large."""
        if self.target.ndim != 2 or 0 in self.target.shape:
            raise ValueError(
                f"the target has shape {self.target.shape}; it must be [targets, steps], each >= 1"
            )
        if np.isnan(self.target).all():
            raise ValueError(f"none of its {self.target.shape[1]} steps has a value")
        length = self.target.shape[1]
        _check_values("the target", self.target)
        _check_covariates("covariates known ahead", self.known_ahead, length + prediction_length)
        _check_covariates("covariates of the past", self.past_only, length)


def _check_covariates(name: str, values: np.ndarray | None, length: int) -> None:
    if values is None:
        return
    if values.ndim != 2 or values.shape[1] != length:
        raise ValueError(f"the {name} have shape {values.shape}; it must be [number, {length}]")
    _check_values(name, values)


def _check_values(name: str, values: np.ndarray) -> None:
    bad = np.abs(values) > np.finfo(np.float32).max
    if bad.any():
        row, step = np.argwhere(bad)[0]
        raise ValueError(
            f"{name}: {int(bad.sum())} values are infinite or too large for float32, the first "
            f"{values[row, step]} at step {step + 1} of row {row + 1}"
        )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The future of one series.

    samples [N, H, C], or None for a model that gives quantiles alone: quantiles [Q, H, C] at
    `levels` (increasing, in (0, 1)).
    """

    samples: np.ndarray | None = None
    levels: tuple[float, ...] = ()
    quantiles: np.ndarray | None = None

    def at(self, level: float) -> np.ndarray:
        """The quantile [H, C] at a level; ValueError for one that a quantile model does not have.

        Of samples: linear between order statistics.
        """
        if not 0 < level < 1:
            raise ValueError(f"the quantile level is {level}; it must be in (0, 1)")
        if self.samples is not None:
            return np.quantile(self.samples, level, axis=0)
        assert self.quantiles is not None
        if level not in self.levels:
            raise ValueError(f"there is no quantile {level}; this model gives {self.levels}")
        return self.quantiles[self.levels.index(level)]

    def at_all(self, levels: Sequence[float]) -> np.ndarray:
        """The quantiles [Q, H, C] at several levels, as `at` gives them."""
        if self.samples is None or not all(0 < level < 1 for level in levels):
            return np.stack([self.at(level) for level in levels])
        return np.quantile(self.samples, levels, axis=0)

    @property
    def mean(self) -> np.ndarray:
        """[H, C]: the mean of the samples, or the median where there are none."""
        return self.at(0.5) if self.samples is None else self.samples.mean(axis=0, dtype=np.float64)


class Forecaster(Protocol):
    """A model ready to forecast.

    `forecast` checks its input as a whole first (sizes, memory: ValueError), then gives one entry
    for every history in order: a Forecast, or a ValueError instance that says why this series has
    none while the others do. `progress(done)` hears how many are finished so far.
    """

    def forecast(
        self,
        histories: Sequence[History],
        prediction_length: int,
        *,
        num_samples: int = 100,
        seed: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Forecast | ValueError]: ...
