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

    @property
    def mean(self) -> np.ndarray:
        """[H, C]: the mean of the samples, or the median where there are none."""
        return self.at(0.5) if self.samples is None else self.samples.mean(axis=0)


class Forecaster(Protocol):
    """A model ready to forecast.

    `forecast` checks its input as a whole first (sizes, memory: ValueError), then gives one entry
    for every history in order: a Forecast, or a ValueError instance that says why this series has
    none while the others do. `progress(done)` hears of finished series.
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
