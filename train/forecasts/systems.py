"""The forecasters that a table can be given to: one line a system."""

from collections.abc import Callable
from dataclasses import dataclass

from moejax.forecasting.series import Forecaster
from train.tables import nearest


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


def _moirai_moe(checkpoint: str, options: LoadOptions) -> Forecaster:
    from moejax.forecasting.moirai.forecaster import MoiraiMoEForecaster
    from train.moirai_start import load_model

    _require_checkpoint("moirai-moe", checkpoint)
    config, variables = load_model(checkpoint)
    return MoiraiMoEForecaster(config, variables, context_length=options.context_length)


def _chronos(checkpoint: str, options: LoadOptions) -> Forecaster:
    from moejax.forecasting.chronos.forecaster import ChronosForecaster, make_pipeline
    from train.chronos_start import load_any

    _require_checkpoint("chronos", checkpoint)
    return ChronosForecaster(make_pipeline(*load_any(checkpoint)), options.context_length)


def _require_checkpoint(system: str, checkpoint: str) -> None:
    if not checkpoint:
        raise ValueError(
            f"{system} needs --checkpoint: a published folder, a hub id, or a workdir of "
            "`moejax train`"
        )


SYSTEMS: dict[str, Callable[[str, LoadOptions], Forecaster]] = {
    "chronos": _chronos,
    "moirai-moe": _moirai_moe,
    "seasonal-naive": _seasonal_naive,
}


def load_forecaster(system: str, checkpoint: str, options: LoadOptions) -> Forecaster:
    """The forecaster of a system; ValueError for an unknown system or a bad checkpoint."""
    if system not in SYSTEMS:
        raise ValueError(
            f"unknown system {system!r}.{nearest(system, SYSTEMS)} Known: {', '.join(SYSTEMS)}"
        )
    return SYSTEMS[system](checkpoint, options)
