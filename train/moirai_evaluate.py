"""Evaluation of a trained MOIRAI-MoE: forecasts of held-out windows beside the seasonal naive."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moejax.forecasting.moirai.forecaster import MoiraiMoEForecaster
from moejax.models.moirai_moe import MoiraiMoEConfig
from train.api import LoadedRun
from train.data import Part
from train.forecasts.score import HeldOut, held_out, joined, score, score_naive
from train.lm_task import model_variables
from train.moirai_data.config import CSV, MixtureConfig
from train.moirai_data.rows import PackedSeries
from train.step import Scorer
from train.workdir import dump, write_text

OURS, NAIVE = "moirai_moe", "seasonal_naive"
Table = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class ForecastEvaluation:
    """`scores`: {set: {forecaster: {crps, mase, coverage80}}}; `nll` of the part's rows."""

    part: str
    source: str
    num_series: int
    nll: float
    scores: Table
    usage: dict[str, Any]

    def to_json(self) -> str:
        """All of it as one JSON object."""
        return dump(vars(self))


def windows_of(data: PackedSeries, config: MixtureConfig, part: Part = "test") -> list[HeldOut]:
    """The held-out windows of the sets that `config.score` names; of a CSV all series together."""
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
            context=config.context,
            season=one.season,
            windows=-(-config.windows // alike) if config.csv else config.windows,
        )
        by_name.setdefault(one.name, []).append(found)
    return [joined(parts) for parts in by_name.values()]


def forecast_scores(
    model: MoiraiMoEConfig,
    variables: Any,
    windows: list[HeldOut],
    config: MixtureConfig,
    progress: Callable[[int], Any] | None = None,
) -> Table:
    """Scores of a model and of the seasonal naive on held-out windows, by set."""
    forecaster = MoiraiMoEForecaster(
        model, variables, context_length=config.context, patch_size=model.patch_sizes[0]
    )
    return {
        held.name: {
            OURS: score(held, forecaster, num_samples=config.samples, progress=progress),
            NAIVE: score_naive(held),
        }
        for held in windows
    }


def final_scores(
    model: MoiraiMoEConfig, data: PackedSeries, config: MixtureConfig, params: Any
) -> dict[str, float]:
    """What a run's last line says of its forecasts: {set}_{crps, mase}, and the naive's."""
    table = forecast_scores(model, model_variables(params), windows_of(data, config), config)
    line = {}
    for name, rows in table.items():
        for key in ("crps", "mase"):
            line[f"{name}_{key}"] = rows[OURS][key]
            line[f"{name}_naive_{key}"] = rows[NAIVE][key]
    return line


def evaluate(run: LoadedRun, part: Part = "test") -> ForecastEvaluation:
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
        nll=run.task.scores(scorer.means(run.params, rows))["nll"],
        scores=forecast_scores(run.config.model, model_variables(run.params), windows, config),
        usage=run.task.report(run.params),
    )


def save_evaluation(run: LoadedRun, evaluation: ForecastEvaluation) -> Path:
    """Write eval.json into the run's workdir; returns its path."""
    path = run.workdir.path / "eval.json"
    write_text(path, evaluation.to_json() + "\n")
    return path
