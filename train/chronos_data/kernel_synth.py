"""KernelSynth: series drawn from Gaussian processes whose kernels are random sums and products.

Ansari et al., 2024: one to five kernels from a bank, with replacement, are joined from left to
right by + or *, each with probability 1/2, on L points of [0, 1]; a series is one draw of the
process. The periods of the bank are in steps.
"""

from functools import lru_cache

import numpy as np

PERIODS = (24, 48, 96, 168, 336, 672, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10)
MOST_KERNELS = 5
JITTER = 1e-6


def kernel_synth(num_series: int, steps: int, seed: int) -> np.ndarray:
    """float64 [num_series, steps]; the same for the same seed. Units are arbitrary."""
    bank = kernel_bank(steps)
    rng = np.random.default_rng(seed)
    return np.stack([_draw(bank, rng) for _ in range(num_series)])


@lru_cache(maxsize=2)
def kernel_bank(steps: int) -> np.ndarray:
    """The covariance matrices of the bank, [K, L, L] float32."""
    t = np.linspace(0, 1, steps)
    gap = np.abs(t[:, None] - t[None, :])
    kernels = [np.exp(-2 * np.sin(np.pi * gap * steps / period) ** 2) for period in PERIODS]
    kernels += [sigma**2 + np.outer(t, t) for sigma in (0.0, 1.0, 10.0)]
    kernels += [np.exp(-(gap**2) / (2 * scale**2)) for scale in (0.1, 1.0, 10.0)]
    kernels += [(1 + gap**2 / (2 * alpha)) ** -alpha for alpha in (0.1, 1.0, 10.0)]
    kernels += [level * np.eye(steps) for level in (0.1, 1.0)]
    kernels.append(np.ones((steps, steps)))
    return np.stack(kernels).astype(np.float32)


def _draw(bank: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One series [L]."""
    chosen = rng.integers(len(bank), size=rng.integers(1, MOST_KERNELS + 1))
    covariance = bank[chosen[0]].astype(np.float64)
    for index in chosen[1:]:
        other = bank[index]
        covariance = covariance + other if rng.random() < 0.5 else covariance * other
    size = np.mean(np.diag(covariance))
    covariance[np.diag_indices_from(covariance)] += JITTER * size
    noise = rng.standard_normal(len(covariance))
    try:
        return np.linalg.cholesky(covariance) @ noise
    except np.linalg.LinAlgError:  # of low rank, as a line or a constant is
        values, vectors = np.linalg.eigh(covariance)
        return vectors @ (np.sqrt(np.maximum(values, 0)) * (vectors.T @ noise))
