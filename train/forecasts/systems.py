"""The forecasters that a table can be given to: one line a system."""

from collections.abc import Callable
from dataclasses import dataclass

from moejax.forecasting.series import Forecaster


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What a system may need to know of the task; `season` is the table's usual one."""

    prediction_length: int
    season: int
    context_length: int | None = None


def _seasonal_naive(checkpoint: str, options: LoadOptions) -> Forecaster:
    from moejax.forecasting.naive import SeasonalNaive

    if checkpoint:
        raise ValueError("seasonal-naive has no parameters; leave --checkpoint out")
    return SeasonalNaive(options.season, options.context_length)


SYSTEMS: dict[str, Callable[[str, LoadOptions], Forecaster]] = {
    "seasonal-naive": _seasonal_naive,
}


def load_forecaster(system: str, checkpoint: str, options: LoadOptions) -> Forecaster:
    """The forecaster of a system; ValueError for an unknown system or a bad checkpoint."""
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; known: {', '.join(SYSTEMS)}")
    return SYSTEMS[system](checkpoint, options)
