"""Series that repeat themselves: a drawn pattern again and again, whose size and level change.

A model cannot tell what comes next but by finding what came a period ago: this is what it learns
from them. Of the wandering ones sizes and levels walk at random, and noise lies over all; of the
drifting ones they turn slowly with next to no noise, so that the last repeat tells more than the
mean of all.
"""

import numpy as np

DRIFTING = 0.6  # share of the series
SMOOTHEST = 7  # steps of the moving average that a pattern is

NOISES = (0.0, 0.1, 0.3)
SIZE_WALKS = (0.0, 0.05, 0.2)
LEVEL_WALKS = (0.0, 0.1, 0.4)

DRIFT_NOISES = (0.0, 0.02)
DRIFTS = (0.03, 0.1, 0.3)  # of the level in a repeat
TURNS = 0.2  # of a drift in a repeat, as a share of it
DRIFT_SIZE_WALK = 0.02
FARTHEST = 30.0  # offset of a drifting series


def seasonal_synth(num_series: int, steps: int, period: int, seed: int) -> np.ndarray:
    """float64 [num_series, steps]; the same for the same seed. Units are arbitrary."""
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            (_drifting if rng.random() < DRIFTING else _wandering)(steps, period, rng)
            for _ in range(num_series)
        ]
    )


def _wandering(steps: int, period: int, rng: np.random.Generator) -> np.ndarray:
    """One series [L]."""
    repeats = -(-steps // period)
    pattern = _pattern(period, rng)
    size = np.exp(rng.choice(SIZE_WALKS) * np.cumsum(rng.standard_normal(repeats)))
    walk = rng.choice(LEVEL_WALKS) * np.cumsum(rng.standard_normal(repeats))
    level = np.repeat(walk, period)
    if rng.random() < 0.5:  # without jumps between the repeats
        whole = np.pad(level, (period // 2, period - 1 - period // 2), "edge")
        level = np.convolve(whole, np.ones(period) / period, "valid")
    offset = rng.exponential(2.0) * rng.choice([1, 1, 1, -1]) if rng.random() < 0.8 else 0.0
    series = (size[:, None] * pattern).reshape(-1) + level + offset
    return series[:steps] + rng.choice(NOISES) * rng.standard_normal(steps)


def _drifting(steps: int, period: int, rng: np.random.Generator) -> np.ndarray:
    """One series [L], whose level and size are smooth between the repeats."""
    repeats = -(-steps // period) + 1
    turns = rng.standard_normal() + TURNS * np.cumsum(rng.standard_normal(repeats))
    sizes = np.exp(DRIFT_SIZE_WALK * np.cumsum(rng.standard_normal(repeats)))
    step = np.arange(steps)
    level, size = (
        np.interp(step, period * np.arange(repeats), values)
        for values in (rng.choice(DRIFTS) * np.cumsum(turns), sizes)
    )
    offset = np.exp(rng.uniform(0.0, np.log(FARTHEST)))
    series = size * _pattern(period, rng)[step % period] + level + offset
    return series + rng.choice(DRIFT_NOISES) * rng.standard_normal(steps)


def _pattern(period: int, rng: np.random.Generator) -> np.ndarray:
    """One period, more or less smooth; some have peaks."""
    width = int(rng.integers(1, SMOOTHEST + 1))
    noise = rng.standard_normal(period + 2 * width)
    pattern = np.convolve(noise, np.ones(width) / np.sqrt(width), "same")[width : width + period]
    peaks = rng.random(period) > 0.7 if rng.random() < 0.3 else np.zeros(period, bool)
    return np.where(peaks, 3 * pattern, pattern)
