"""How close two arrays are. Numpy only."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metrics:
    """Distances of an array from a reference.

    `pcc`: Pearson correlation (1.0 for two equal constants); `relative_l2`: norm of the difference
    over the reference's norm; `max_abs`: largest difference; `scale`: largest reference value.
    """

    pcc: float
    relative_l2: float
    max_abs: float
    scale: float


def compare(found: np.ndarray, expected: np.ndarray) -> Metrics:
    """Metrics of `found` against `expected`, in float64; ValueError when the shapes differ.

    Infinities and NaN must stand in the same places (else every metric says so); the rest counts.
    """
    if found.shape != expected.shape:
        raise ValueError(f"shape is {found.shape}, expected {expected.shape}")
    a, b = (np.asarray(array, np.float64).ravel() for array in (found, expected))
    finite = np.isfinite(b)
    if (
        not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        or not np.isfinite(a[finite]).all()
    ):
        return Metrics(pcc=0.0, relative_l2=float("inf"), max_abs=float("inf"), scale=float("inf"))
    a, b = a[finite], b[finite]
    if a.size == 0:
        return Metrics(pcc=1.0, relative_l2=0.0, max_abs=0.0, scale=0.0)
    difference, norm = np.linalg.norm(a - b), np.linalg.norm(b)
    return Metrics(
        pcc=_pearson(a, b),
        relative_l2=float(difference / norm if norm else difference),
        max_abs=float(np.abs(a - b).max()),
        scale=float(np.abs(b).max()),
    )


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a - a.mean(), b - b.mean()
    spread = np.linalg.norm(x) * np.linalg.norm(y)
    if spread == 0.0:
        return float(np.allclose(a, b))
    return float(x @ y / spread)
