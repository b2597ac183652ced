"""A generator of series: trend, seasons, noise, levels that shift, counts, missing stretches.

Every series of a set is drawn at once, from one seed. Letters: N series, L steps, J seasons.
"""

import numpy as np

# steps of a season that real series have: a week of days, a day of hours, of quarters of an hour...
PERIODS = np.array([4, 7, 12, 24, 24, 24, 48, 96, 96, 144, 144, 168, 288])
HARMONICS = 4


def synthetic(num_series: int, steps: int, seed: int) -> np.ndarray:
    """Series float64 [L, N]; NaN where a value is missing."""
    rng = np.random.default_rng([seed, num_series, steps])
    time_L = np.arange(steps) / steps
    x_NL = _trend(rng, num_series, time_L)
    x_NL += _seasons(rng, num_series, steps)
    x_NL += _noise(rng, num_series, steps)
    x_NL += _shifts(rng, num_series, steps)
    scale_N1 = np.exp(rng.normal(0, 2, (num_series, 1)))
    level_N1 = rng.normal(0, 3, (num_series, 1)) * scale_N1
    x_NL = x_NL * scale_N1 + level_N1
    kinds_N1 = rng.random((num_series, 1))
    x_NL = np.where(kinds_N1 < 0.12, _counts(rng, x_NL), x_NL)
    x_NL = np.where((kinds_N1 > 0.12) & (kinds_N1 < 0.22), _floored(x_NL), x_NL)
    return np.where(_gaps(rng, num_series, steps), np.nan, x_NL).T


def _trend(rng: np.random.Generator, num_series: int, time_L: np.ndarray) -> np.ndarray:
    """A line with one kink, often flat."""
    slopes = rng.normal(0, 1.5, (2, num_series, 1)) * (rng.random((2, num_series, 1)) < 0.5)
    kink_N1 = rng.random((num_series, 1))
    return slopes[0] * time_L + slopes[1] * np.maximum(time_L - kink_N1, 0)


def _seasons(rng: np.random.Generator, num_series: int, steps: int) -> np.ndarray:
    """Up to two seasons of a few harmonics each, whose strength drifts; some have sharp peaks."""
    total_NL = np.zeros((num_series, steps))
    step_L = np.arange(steps)
    for chance in (0.9, 0.4):
        period_N1 = rng.choice(PERIODS, (num_series, 1))
        wave_NL = np.zeros((num_series, steps))
        for harmonic in range(1, HARMONICS + 1):
            size_N1 = rng.normal(0, 1, (num_series, 1)) / harmonic
            phase_N1 = rng.uniform(0, 2 * np.pi, (num_series, 1))
            wave_NL += size_N1 * np.sin(2 * np.pi * harmonic * step_L / period_N1 + phase_N1)
        sharp_N1 = rng.random((num_series, 1)) < 0.2
        wave_NL = np.where(sharp_N1, np.maximum(wave_NL, 0) ** 1.5, wave_NL)
        drift_NL = 1 + 0.3 * np.sin(
            2 * np.pi * (step_L / steps * rng.uniform(0, 4, (num_series, 1)) + rng.random())
        )
        total_NL += wave_NL * drift_NL * (rng.random((num_series, 1)) < chance)
    return total_NL


def _noise(rng: np.random.Generator, num_series: int, steps: int) -> np.ndarray:
    """An autoregression of order 1, from white noise to a random walk, some with heavy tails."""
    normal_NL = rng.normal(0, 1, (num_series, steps))
    heavy_NL = rng.standard_t(3, (num_series, steps)) / np.sqrt(3)
    shock_NL = np.where(rng.random((num_series, 1)) < 0.3, heavy_NL, normal_NL)
    memory_N = rng.choice([0.0, 0.5, 0.8, 0.95, 0.99, 1.0], num_series)
    size_N = np.exp(rng.uniform(np.log(0.03), np.log(1.0), num_series))
    noise_NL, last_N = np.empty_like(shock_NL), np.zeros(num_series)
    gain_N = np.where(memory_N < 1, np.sqrt(1 - np.minimum(memory_N, 0.999) ** 2), 0.1)
    for step in range(steps):
        last_N = memory_N * last_N + gain_N * shock_NL[:, step]
        noise_NL[:, step] = last_N
    return noise_NL * size_N[:, None]


def _shifts(rng: np.random.Generator, num_series: int, steps: int) -> np.ndarray:
    """Steps of the level, in some series, once in 500 steps."""
    jump_NL = rng.normal(0, 1, (num_series, steps)) * (rng.random((num_series, steps)) < 1 / 500)
    return np.cumsum(jump_NL, axis=1) * (rng.random((num_series, 1)) < 0.15)


def _counts(rng: np.random.Generator, x_NL: np.ndarray) -> np.ndarray:
    """Poisson counts whose rate moves as the series does, from rare events to hundreds."""
    z_NL = (x_NL - x_NL.mean(axis=1, keepdims=True)) / (x_NL.std(axis=1, keepdims=True) + 1e-9)
    rate_N1 = np.exp(rng.uniform(-2, 5, (len(x_NL), 1)))
    return rng.poisson(rate_N1 * np.exp(np.clip(0.7 * z_NL, -3, 3))).astype(np.float64)


def _floored(x_NL: np.ndarray) -> np.ndarray:
    """The part above the median, as rain or sunlight: 0 half of the time."""
    return np.maximum(x_NL - np.median(x_NL, axis=1, keepdims=True), 0)


def _gaps(rng: np.random.Generator, num_series: int, steps: int) -> np.ndarray:
    """Missing stretches of up to 60 steps and single cells, in a tenth of the series."""
    starts_NL = rng.random((num_series, steps)) < 1 / 400
    length_N1 = rng.integers(1, 60, (num_series, 1))
    begun_NL = np.cumsum(starts_NL, axis=1)
    before_NL = np.take_along_axis(
        np.pad(begun_NL, ((0, 0), (1, 0))), np.maximum(np.arange(steps) - length_N1 + 1, 0), axis=1
    )
    single_NL = rng.random((num_series, steps)) < 0.02
    return ((begun_NL > before_NL) | single_NL) & (rng.random((num_series, 1)) < 0.1)
