"""Scores of forecasts and the use of experts.

Axes: B windows in a batch, W windows in all, P steps ahead, C channels, K experts.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Units:
    """How scaled values relate to the original ones; float64 [C] each.

    `naive` is the mean absolute difference, in scaled space, of training rows one season apart.
    """

    mean: np.ndarray
    scale: np.ndarray
    naive: np.ndarray


def seasonal_naive_error(scaled: np.ndarray, season: int) -> np.ndarray:
    """Mean |x_t - x_(t-season)| of rows [N,C]; a season longer than the rows counts as 1."""
    season = season if season < len(scaled) else 1
    return np.abs(scaled[season:] - scaled[:-season]).mean(axis=0)


def forecast_errors(y_BPC: jax.Array, target_BPC: jax.Array, units: Units) -> dict[str, jax.Array]:
    """Means over the steps of squared, absolute and symmetric relative errors, each [B,C].

    The relative error 2|y - t| / (|y| + |t|) is taken in original units; 0/0 counts as 0.
    """
    difference = jnp.abs(y_BPC - target_BPC)
    scale = jnp.asarray(units.scale, jnp.float32)[None, None]
    mean = jnp.asarray(units.mean, jnp.float32)[None, None]
    size = jnp.abs(y_BPC * scale + mean) + jnp.abs(target_BPC * scale + mean)
    relative = jnp.where(size > 0, 2 * difference * scale / jnp.where(size > 0, size, 1), 0)
    return {
        "squared": jnp.mean(difference**2, axis=1),
        "absolute": jnp.mean(difference, axis=1),
        "relative": jnp.mean(relative, axis=1),
    }


def forecast_scores(means: dict[str, np.ndarray], units: Units) -> dict[str, float]:
    """Scores from means [C] of `forecast_errors` over all windows.

    mse, mae: scaled space. mse_original, mae_original: original units. smape: percent, original
    units. mase: absolute error over that of the seasonal naive forecast on the training rows
    (columns that repeat exactly are left out; NaN when all do).
    """
    usable = units.naive > 0
    mase = (
        float(np.mean(means["absolute"][usable] / units.naive[usable])) if usable.any() else np.nan
    )
    return {
        "mse": float(np.mean(means["squared"])),
        "mae": float(np.mean(means["absolute"])),
        "mse_original": float(np.mean(means["squared"] * units.scale**2)),
        "mae_original": float(np.mean(means["absolute"] * units.scale)),
        "smape": float(100 * np.mean(means["relative"])),
        "mase": mase,
    }


def channel_scores(
    means: dict[str, np.ndarray], units: Units, columns: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """The same scores for each column by name."""
    table = {}
    for index, name in enumerate(columns):
        one = slice(index, index + 1)
        own = Units(mean=units.mean[one], scale=units.scale[one], naive=units.naive[one])
        table[name] = forecast_scores({key: value[one] for key, value in means.items()}, own)
    return table


def expert_usage(
    gate_WKC: np.ndarray, dates: np.ndarray, columns: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Who does the work: mean gate by hour, weekday and channel of each window's first step.

    `dates` [W]. Returns `hour` [24,K], `weekday` [7,K] (0 = Monday; rows without windows are NaN),
    `channel` [C,K], `mean` [K], and two numbers in [0,1]: `balance` (entropy of the mean gate over
    log K; 1 = all experts are used equally) and `specialisation` (the part of that entropy which
    the window and channel explain; 0 = the gate never moves, 1 = one expert a window).
    """
    index = pd.DatetimeIndex(dates)
    by_window = gate_WKC.mean(axis=2, dtype=np.float64)
    mean = by_window.mean(axis=0)
    total = _entropy(mean)
    conditional = float(np.mean(_entropy(np.moveaxis(gate_WKC.astype(np.float64), 1, 2))))
    return {
        "hour": _grouped(by_window, np.asarray(index.hour), 24),
        "weekday": _grouped(by_window, np.asarray(index.day_of_week), 7),
        "channel": gate_WKC.mean(axis=0, dtype=np.float64).T,
        "mean": mean,
        "columns": list(columns),
        "balance": float(total / np.log(len(mean))) if len(mean) > 1 else 1.0,
        "specialisation": float(1 - conditional / total) if total > 0 else 0.0,
    }


def _grouped(values: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """Means of rows [W,K] by group: [count,K], NaN for an empty group."""
    table = np.full((count, values.shape[1]), np.nan)
    for one in np.unique(group):
        table[one] = values[group == one].mean(axis=0)
    return table


def _entropy(probability: np.ndarray) -> np.ndarray:
    """Entropy over the last axis, in nats."""
    safe = np.where(probability > 0, probability, 1.0)
    return -np.sum(probability * np.log(safe), axis=-1)
