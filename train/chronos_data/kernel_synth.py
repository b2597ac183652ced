"""KernelSynth: series drawn from Gaussian processes whose kernels are random sums and products.

Ansari et al., 2024: one to five kernels from a bank, with replacement, are joined from left to
right by + or *, each with probability 1/2, on L points of [0, 1]; a series is one draw of the
process. The periods of the bank are in steps.
"""

import os
from dataclasses import dataclass
from functools import lru_cache, partial

import grain
import numpy as np
from threadpoolctl import threadpool_limits

PERIODS = (24, 48, 96, 168, 336, 672, 7, 14, 30, 60, 365, 730, 4, 26, 52, 4, 6, 12, 4, 40, 10)
MOST_KERNELS = 5
JITTER = 1e-6


@dataclass(frozen=True)
class Process:
    """A Gaussian process and its draw: kernels of the bank [k], which of the later ones are added
    and not multiplied [k - 1], and white noise [L].
    """

    kernels: np.ndarray
    added: np.ndarray
    noise: np.ndarray


def kernel_synth(num_series: int, steps: int, seed: int) -> np.ndarray:
    """float64 [num_series, steps]; the same for the same seed. Units are arbitrary."""
    with threadpool_limits(1, "blas"):  # cores do more with a series each than all with one
        return np.stack(list(kernel_stream(num_series, steps, seed)))


def kernel_stream(num_series: int, steps: int, seed: int) -> grain.IterDataset:
    """The same series one after another [L], computed on all cores, a few ahead of the reader."""
    bank, rng = kernel_bank(steps), np.random.default_rng(seed)
    processes = [_process(bank, rng) for _ in range(num_series)]
    threads = len(os.sched_getaffinity(0))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return grain.MapDataset.source(processes).map(partial(_draw, bank)).to_iter_dataset(options)


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


def _process(bank: np.ndarray, rng: np.random.Generator) -> Process:
    kernels = rng.integers(len(bank), size=rng.integers(1, MOST_KERNELS + 1))
    added = rng.random(len(kernels) - 1) < 0.5
    return Process(kernels, added, rng.standard_normal(bank.shape[1]))


def _draw(bank: np.ndarray, process: Process) -> np.ndarray:
    """One series [L]."""
    first, *others = process.kernels
    covariance = bank[first].astype(np.float64)
    for other, added in zip(others, process.added, strict=True):
        covariance = covariance + bank[other] if added else covariance * bank[other]
    size = np.mean(np.diag(covariance))
    covariance[np.diag_indices_from(covariance)] += JITTER * size
    try:
        return np.linalg.cholesky(covariance) @ process.noise
    except np.linalg.LinAlgError:  # of low rank, as a line or a constant is
        values, vectors = np.linalg.eigh(covariance)
        return vectors @ (np.sqrt(np.maximum(values, 0)) * (vectors.T @ process.noise))
