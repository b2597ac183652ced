"""What a case of a lowering rule is, and the numbers that cases are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Case:
    """A small JAX function that must go through the rule named `rule`.

    `function` takes `inputs` in order; arrays that it closes over are weights. `exact` bounds the
    largest error of exact float32 over the result's scale. `bfloat16` and `bfloat8_b` bound the
    relative L2 error of each result under that policy with the device's rounding, `float32` bounds
    it where a matrix product cuts float32 to TF32. Integers and truth values must be equal.
    """

    rule: str
    name: str
    function: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    exact: float = 1e-5
    float32: float = 3e-3
    bfloat16: float = 0.007
    bfloat8_b: float = 0.04

    def __str__(self) -> str:
        return f"{self.rule}-{self.name}".replace(" ", "_")

    def named_inputs(self) -> dict[str, np.ndarray]:
        return {f"x{index}": array for index, array in enumerate(self.inputs)}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers between 0.25 and 4."""
    return np.random.default_rng([seed, *shape]).uniform(0.25, 4, shape).astype(np.float32)


def grid(*shape: int, seed: int = 0) -> np.ndarray:
    """Quarters between -2 and 2: equal in every float format, with ties and zeros."""
    return (np.random.default_rng([seed, *shape]).integers(-8, 9, shape) / 4).astype(np.float32)


def integers(*shape: int, low: int = -5, high: int = 6, seed: int = 0) -> np.ndarray:
    """int32 in [low, high)."""
    return np.random.default_rng([seed, *shape]).integers(low, high, shape).astype(np.int32)


def booleans(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, 2, shape).astype(bool)
