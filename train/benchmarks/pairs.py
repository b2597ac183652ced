"""Timing of pairs: a method and what it is compared with, next to each other in time."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

Name = TypeVar("Name", str, int)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Seconds of the rounds [R]: wall and process CPU time of a method and of its baseline."""

    wall: np.ndarray
    cpu: np.ndarray
    baseline_wall: np.ndarray
    baseline_cpu: np.ndarray

    @property
    def seconds(self) -> float:
        return float(np.median(self.wall))

    @property
    def baseline_seconds(self) -> float:
        return float(np.median(self.baseline_wall))

    @property
    def speed(self) -> float:
        """Median over rounds of the method's speed as a share of the baseline's."""
        return float(np.median(self.baseline_wall / self.wall))

    @property
    def cpu_speed(self) -> float:
        """The same by CPU time, which neighbours on the machine disturb less."""
        return float(np.median(self.baseline_cpu / np.maximum(self.cpu, 1e-9)))


def time_pairs[Name: (str, int)](
    methods: Mapping[Name, Callable[[], Any]],
    baseline: Callable[[], Any],
    *,
    rounds: int,
    warm_up: int = 1,
) -> dict[Name, Pair]:
    """Each round runs every method once, next to the baseline, before and after it in turns.

    The functions return arrays; their time ends when those are ready.
    """
    found: dict[Name, list[tuple[float, ...]]] = {name: [] for name in methods}
    for index in range(warm_up + rounds):
        for name, method in methods.items():
            if index % 2:
                base, own = clock(baseline), clock(method)
            else:
                own, base = clock(method), clock(baseline)
            if index >= warm_up:
                found[name].append((*own, *base))
    names = ("wall", "cpu", "baseline_wall", "baseline_cpu")
    return {
        name: Pair(**dict(zip(names, np.array(times).T, strict=True)))
        for name, times in found.items()
    }


def clock(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall and process CPU seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - cpu


def temporaries(compiled: Any) -> int | None:
    """Bytes of XLA's temporary buffers; None where the platform doesn't say."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
