"""Values in the place of missing ones (NaN), as GluonTS puts them there."""

import numpy as np


def causal_mean(values_L: np.ndarray) -> np.ndarray:
    """Each missing value [L] becomes the mean of all before it, where gaps count as the last value.

    Missing values at the start become the first one that is there; 0 where there is none.
    """
    missing_L = np.isnan(values_L)
    if not missing_L.any():
        return values_L
    if missing_L.all():
        return np.zeros_like(values_L)
    steps_L = np.arange(len(values_L))
    last_L = np.maximum.accumulate(np.where(missing_L, 0, steps_L))
    filled_L = values_L[np.where(missing_L[last_L], np.argmin(missing_L), last_L)]
    sums_L = np.cumsum(filled_L, dtype=np.float64)
    means_L = np.concatenate([filled_L[:1], sums_L[:-1] / np.maximum(steps_L[1:], 1)])
    return np.where(missing_L, means_L, values_L).astype(values_L.dtype)


def zeros(values: np.ndarray) -> np.ndarray:
    """Each missing value becomes 0."""
    return np.where(np.isnan(values), 0, values).astype(values.dtype)
