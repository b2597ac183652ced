"""Evaluation of a trained run: scores over all windows, a row a column, and who did the work.

Axes: W windows, P steps ahead, T target channels, K experts, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.api import LoadedRun
from train.data import Dataset, Part, Series, load_series
from train.metrics import channel_scores, expert_usage
from train.step import Scorer
from train.workdir import dump, write_text


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of one part of a data set. `usage`: see metrics.expert_usage; None for one expert."""

    part: str
    source: str
    num_windows: int
    scores: dict[str, float]
    channels: dict[str, dict[str, float]]
    usage: dict[str, Any] | None

    def to_json(self) -> str:
        """All of it as one JSON object."""
        return dump(vars(self))


def evaluate(run: LoadedRun, part: Part = "test", csv: str = "") -> Evaluation:
    """Score the run's best parameters on all windows of a part, or of all of another CSV.

    Another file is scaled with the scaler of the training data. ValueError when its columns are
    not as many as the model's channels, and for every other problem with the file.
    """
    dataset = run.dataset
    if csv:
        dataset, part = other_file(run, csv), "test"
    starts = dataset.starts[part]
    task = replace(
        run.task,
        arrays=jax.device_put({"rows": dataset.scaled, "marks": dataset.marks}),
        indices={part: starts},
    )
    means = Scorer(task).means(run.params, starts)
    units = run.system.dataset_units(run.dataset)
    return Evaluation(
        part="all" if csv else part,
        source=dataset.series.source,
        num_windows=len(starts),
        scores=task.scores(means),
        channels=channel_scores(means, units, dataset.series.columns[dataset.targets]),
        usage=_usage(run, dataset, starts),
    )


def forecast(
    run: LoadedRun, starts: np.ndarray, dataset: Dataset | None = None, batch_size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts [W,P,C] (scaled space) and gates [W,K,C] of windows that begin at these rows."""
    parts = list(_forecasts(run, np.asarray(starts), dataset or run.dataset, batch_size))
    return np.concatenate([y for y, _ in parts]), np.concatenate([gate for _, gate in parts])


def other_file(run: LoadedRun, csv: str) -> Dataset:
    """Another CSV as data for this run, scaled as in training, all windows as "test"."""
    series = load_series(replace(run.config.data, name="csv", csv=csv))
    own = run.dataset.series
    if series.num_channels != own.num_channels:
        raise ValueError(
            f"{csv} has {series.num_channels} channels ({_names(series)}), but the model "
            f"was trained on {own.num_channels} ({_names(own)}); give a file with the same columns"
        )
    if series.columns != own.columns:
        missing = [name for name in own.columns if name not in series.columns]
        if missing:
            raise ValueError(
                f"{csv} lacks columns that the model was trained on: {', '.join(missing)}; "
                f"it has {_names(series)}"
            )
        order = [series.columns.index(name) for name in own.columns]
        series = replace(series, values=series.values[:, order], columns=own.columns)
    return run.dataset.with_series(series, run.config.data.freq)


def save_evaluation(run: LoadedRun, evaluation: Evaluation) -> Path:
    """Write eval.json into the run's workdir; returns its path."""
    path = run.workdir.path / "eval.json"
    write_text(path, evaluation.to_json() + "\n")
    return path


def _names(series: Series) -> str:
    return ", ".join(series.columns)


def _usage(run: LoadedRun, dataset: Dataset, starts: np.ndarray) -> dict[str, Any] | None:
    if run.config.model.num_experts == 1:
        return None
    gate_WKC = np.concatenate([gate for _, gate in _forecasts(run, starts, dataset, 256)])
    return expert_usage(gate_WKC, dataset.series.dates[starts], dataset.series.columns)


def _forecasts(
    run: LoadedRun, starts: np.ndarray, dataset: Dataset, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    model = run.model
    arrays = jax.device_put({"rows": dataset.scaled, "marks": dataset.marks})

    @jax.jit
    def apply(params: Any, arrays: Any, starts_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = run.task.cut(arrays, starts_B)
        found = model.apply({"params": params}, batch["x"], batch["mark"])
        return found.y, found.gate

    size = min(batch_size, len(starts))
    for first in range(0, len(starts), size):
        some = starts[first : first + size]
        padded = np.resize(some, size).astype(np.int32)
        y, gate = apply(run.params, arrays, padded)
        yield np.asarray(y)[: len(some)], np.asarray(gate)[: len(some)]
