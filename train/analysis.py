"""What plots and report show of a trained run: sample windows, the router over time, baselines.

Axes: W windows, S steps of context, P steps ahead, C channels shown, K experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.models.mole import MoLE
from train.api import LoadedRun
from train.data import Dataset, Part
from train.evaluate import forecast
from train.figures import Window
from train.metrics import forecast_errors
from train.optim import learning_rate
from train.step import Scorer

MAX_CHANNELS = 7
ROUTER_WINDOWS = 336


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Sample windows of a part (original units), the router's weights over its first windows.

    `columns`: names of the channels in `windows`. `gate_dates` [W], `gates` [W,K,C] with all
    channels of the data set. `history`: a line an epoch; `rates`: learning rate at its start.
    """

    part: str
    columns: tuple[str, ...]
    windows: tuple[Window, ...]
    gate_dates: np.ndarray
    gates: np.ndarray
    gate_columns: tuple[str, ...]
    history: tuple[dict[str, Any], ...]
    rates: tuple[float, ...]
    best_epoch: int


def analyse(
    run: LoadedRun, part: Part = "test", dataset: Dataset | None = None, count: int = 3
) -> Analysis:
    """Look at `count` windows spread evenly over a part, whatever their error."""
    dataset = run.dataset if dataset is None else dataset
    assert dataset is not None
    starts = dataset.starts[part]
    places = (np.arange(count) * 2 + 1) * len(starts) // (2 * count)
    channels = np.arange(dataset.series.num_channels)[dataset.targets]
    if len(channels) > MAX_CHANNELS:
        channels = channels[np.linspace(0, len(channels) - 1, MAX_CHANNELS).round().astype(int)]
    first = starts[:ROUTER_WINDOWS]
    history = tuple(line for line in run.workdir.read_metrics() if "epoch" in line)
    return Analysis(
        part=part,
        columns=tuple(dataset.series.columns[i] for i in channels),
        windows=sample_windows(run, dataset, starts[np.unique(places)], channels),
        gate_dates=dataset.series.dates[first],
        gates=forecast(run, first, dataset)[1],
        gate_columns=dataset.series.columns,
        history=history,
        rates=_rates(run, len(history)),
        best_epoch=min(history, key=lambda line: line["val_mse"])["epoch"] if history else 0,
    )


def sample_windows(
    run: LoadedRun, dataset: Dataset, starts: np.ndarray, channels: np.ndarray
) -> tuple[Window, ...]:
    """The windows that begin at these rows, with the forecast of every expert."""
    size, scaler = run.config.model, dataset.scaler
    y_WPC, gate_WKC = forecast(run, starts, dataset)
    rows = np.asarray(starts)[:, None] + np.arange(size.seq_len)
    heads_WKPC = expert_forecasts(run.model, run.params, dataset.scaled[rows])
    found = []
    for start, y_PC, gate_KC, heads_KPC in zip(starts, y_WPC, gate_WKC, heads_WKPC, strict=True):
        middle, stop = start + size.seq_len, start + size.seq_len + size.pred_len
        found.append(
            Window(
                dates=dataset.series.dates[start:stop],
                context=dataset.series.values[start:middle, channels],
                truth=dataset.series.values[middle:stop, channels],
                forecast=scaler.inverse(y_PC)[:, channels],
                experts=scaler.inverse(heads_KPC)[..., channels],
                gate=gate_KC[:, channels],
            )
        )
    return tuple(found)


def expert_forecasts(model: MoLE, params: Any, x_WSC: np.ndarray) -> np.ndarray:
    """What each expert alone would forecast: windows [W,S,C] -> [W,K,P,C], scaled space."""

    def alone(module: MoLE, x_BSC: jax.Array) -> jax.Array:
        if not module.config.normalises:
            return module.heads(x_BSC)
        stats = module.revin.stats(x_BSC)
        heads_BKPC = module.heads(module.revin.normalise(x_BSC, stats))
        experts = range(module.config.num_experts)
        return jnp.stack([module.revin.restore(heads_BKPC[:, k], stats) for k in experts], axis=1)

    return np.asarray(model.apply({"params": params}, jnp.asarray(x_WSC), method=alone))


def baseline_scores(run: LoadedRun, part: Part = "test") -> dict[str, dict[str, float]]:
    """Scores of forecasts without a model, over all windows of a part."""
    season, size = run.dataset.season(), run.config.model
    rules: dict[str, Callable[[jax.Array], jax.Array]] = {
        "last value": lambda x: jnp.repeat(x[:, -1:], size.pred_len, axis=1)
    }
    if 1 < season <= size.seq_len:
        steps = np.arange(size.pred_len) % season
        rules[f"the last {season} steps again"] = lambda x: x[:, -season:][:, steps]
    return {name: _scores(run, part, rule) for name, rule in rules.items()}


def _scores(run: LoadedRun, part: Part, rule: Callable[[jax.Array], jax.Array]) -> dict[str, float]:
    units = run.system.dataset_units(run.dataset)

    def errors(_: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        y_BPC = rule(batch["x"])[..., run.dataset.targets]
        return forecast_errors(y_BPC, batch["y"], units)

    arrays = jax.device_put(run.task.arrays)
    return Scorer(replace(run.task, arrays=arrays, errors=errors)).scores({}, part)


def _rates(run: LoadedRun, epochs: int) -> tuple[float, ...]:
    loop = run.config.loop
    steps = max(len(run.task.indices["train"]) // loop.batch_size, 1)
    rate = learning_rate(run.config.optim, steps_per_epoch=steps, epochs=loop.epochs)
    return tuple(np.asarray(rate(epoch * steps)).item() for epoch in range(epochs))


def window_numbers(windows: Sequence[Window], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The windows as JSON values: what the pictures of them show."""
    return [
        {
            "from": str(window.dates[len(window.context)]),
            "columns": list(columns),
            "truth": window.truth.round(4).tolist(),
            "forecast": window.forecast.round(4).tolist(),
            "weights": window.gate.round(4).tolist(),
        }
        for window in windows
    ]
