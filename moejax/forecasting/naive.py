"""Seasonal naive: the last season again, with the errors that this made in the past.

L steps of history, H ahead, C targets, N samples, M steps of a season.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moejax.checks import require_positive
from moejax.forecasting.memory import require_samples_fit
from moejax.forecasting.series import Forecast, History


class SeasonalNaive:
    """A forecaster without a model, to be beaten.

    The mean of a step is the last value at its place in the season. A sample adds, for every
    season between, one of the differences that the target had between two seasons: a random walk.
    Covariates are not used.
    """

    def __init__(self, season_length: int, context_length: int | None = None) -> None:
        require_positive("season_length", season_length)
        if context_length is not None and context_length <= season_length:
            raise ValueError(
                f"context_length is {context_length}; it must exceed the season, {season_length}"
            )
        self.season_length = season_length
        self.context_length = context_length

    def forecast(
        self,
        histories: Sequence[History],
        prediction_length: int,
        *,
        num_samples: int = 100,
        seed: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Forecast | ValueError]:
        """See Forecaster. A series needs two values a season apart, and one at every place."""
        require_positive("prediction_length", prediction_length)
        require_positive("num_samples", num_samples)
        num_targets = sum(len(history.target) for history in histories)
        require_samples_fit(num_samples, prediction_length, num_targets)
        found: list[Forecast | ValueError] = []
        for index, history in enumerate(histories):
            random = np.random.default_rng([seed, index])
            try:
                history.check(prediction_length)
                paths = [
                    self._paths(values, prediction_length, num_samples, random)
                    for values in history.target
                ]
                found.append(Forecast(samples=np.stack(paths, axis=-1)))
            except ValueError as error:
                found.append(error)
            if progress:
                progress(index + 1)
        return found

    def _paths(
        self, values_L: np.ndarray, steps: int, num_samples: int, random: np.random.Generator
    ) -> np.ndarray:
        """Samples [N, H] of one target."""
        season = self.season_length
        values_L = values_L[-self.context_length :] if self.context_length else values_L
        changes = values_L[season:] - values_L[:-season]
        changes = changes[~np.isnan(changes)]
        if not len(changes):
            raise ValueError(
                f"no two of its {len(values_L)} steps with a value are a season of {season} steps "
                "apart; choose a shorter season"
            )
        padding = np.full(-len(values_L) % season, np.nan)
        table = np.concatenate([padding, values_L]).reshape(-1, season)
        present = ~np.isnan(table)
        if not present.any(axis=0).all():
            raise ValueError(
                f"{int((~present.any(axis=0)).sum())} of the {season} places in the season have no "
                "value; choose a shorter season"
            )
        last = len(table) - 1 - present[::-1].argmax(axis=0)
        last_season = table[last, np.arange(season)]
        seasons = -(-steps // season)
        walk = random.choice(changes, (num_samples, seasons, season)).cumsum(axis=1)
        return (last_season + walk).reshape(num_samples, -1)[:, :steps].astype(np.float32)
