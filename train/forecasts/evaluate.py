"""Evaluation of a trained forecaster: forecasts of held-out windows beside the seasonal naive."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moejax.forecasting.series import Forecaster
from train.data import Part
from train.forecasts.score import HeldOut, held_out, joined, score, score_naive
from train.series_sets.config import CSV, SetsConfig
from train.step import Scorer
from train.workdir import dump, write_text

if TYPE_CHECKING:  # it imports the recipes, which import this
    from train.api import LoadedRun

NAIVE = "seasonal_naive"
Table = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class ForecastEvaluation:
    """`scores`: {set: {forecaster: {crps, mase, coverage80}}}; `loss` of the part's rows."""

    part: str
    source: str
    num_series: int
    loss: float
    scores: Table
    usage: dict[str, Any]

    def to_json(self) -> str:
        """All of it as one JSON object."""
        return dump(vars(self))


def windows_of(data: Any, config: SetsConfig, part: Part = "test") -> list[HeldOut]:
    """The held-out windows of the sets of data that `config.score` names; of a CSV all series."""
    wanted = [one for one in data.sets if one.name in config.score or one.name == CSV]
    rows = {id(one): getattr(one.splits, part) for one in wanted}
    wanted = [one for one in wanted if np.ptp(rows[id(one)]) >= config.horizon]
    by_name: dict[str, list[HeldOut]] = {}
    for one in wanted:
        columns = config.score_columns or one.num_columns
        alike = sum(other.name == one.name for other in wanted)
        found = held_out(
            one.name,
            one.values[:, :columns],
            rows[id(one)],
            horizon=config.horizon,
            context=max(config.context, one.season),  # a season for the naive forecast
            season=one.season,
            windows=-(-config.windows // alike) if config.csv else config.windows,
        )
        by_name.setdefault(one.name, []).append(found)
    return [joined(parts) for parts in by_name.values()]


def forecast_scores(
    forecaster: Forecaster,
    name: str,
    windows: list[HeldOut],
    num_samples: int,
    progress: Callable[[int], Any] | None = None,
) -> Table:
    """Scores of a forecaster and of the seasonal naive on held-out windows, by set."""
    return {
        held.name: {
            name: score(held, forecaster, num_samples=num_samples, progress=progress),
            NAIVE: score_naive(held),
        }
        for held in windows
    }


def final_scores(forecaster: Forecaster, name: str, data: Any, config: Any) -> dict[str, float]:
    """What a run's last line says of its forecasts: {set}_{crps, mase}, and the naive's."""
    line = {}
    found = forecast_scores(forecaster, name, windows_of(data, config), config.samples)
    for one, rows in found.items():
        for key in ("crps", "mase"):
            line[f"{one}_{key}"] = rows[name][key]
            line[f"{one}_naive_{key}"] = rows[NAIVE][key]
    return line


def scores_in_a_line(final: dict[str, Any]) -> str:
    """The forecasts' part of a finished run's summary."""
    sets = [key.removesuffix("_naive_crps") for key in final if key.endswith("_naive_crps")]
    return "; ".join(
        f"{one}: CRPS {final[f'{one}_crps']:.4f} (seasonal naive {final[f'{one}_naive_crps']:.4f}),"
        f" MASE {final[f'{one}_mase']:.4f} ({final[f'{one}_naive_mase']:.4f})"
        for one in sets
    )


def evaluate(run: "LoadedRun", part: Part = "test") -> ForecastEvaluation:
    """Score the run's best parameters on the windows of a part."""
    config = run.config.data
    windows = windows_of(run.dataset, config, part)
    if not windows:
        raise ValueError(
            f"the {part} parts of {', '.join(config.score)} hold no window of {config.horizon}"
            " rows; name other sets with data.score, or lower data.horizon"
        )
    rows = run.dataset.indices[part]
    scorer = Scorer(run.task, batch_size=run.config.loop.eval_batch_size)
    return ForecastEvaluation(
        part=part,
        source=", ".join(one.name for one in windows),
        num_series=sum(len(one.histories) for one in windows),
        loss=run.task.scores(scorer.means(run.params, rows))[run.task.watched],
        scores=forecast_scores(
            run.system.make_forecaster(run.config, run.params),
            run.system.FORECASTER,
            windows,
            config.samples,
        ),
        usage=run.task.report(run.params),
    )


def save_evaluation(run: "LoadedRun", evaluation: ForecastEvaluation) -> Path:
    """Write eval.json into the run's workdir; returns its path."""
    path = run.workdir.path / "eval.json"
    write_text(path, evaluation.to_json() + "\n")
    return path
