"""The next token from logits, on the host. Numpy only."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn: at temperature 0 the likeliest; else by softmax(logits / t).

    Of the tokens only the `top_k` likeliest (0: all), and of those the fewest whose probability
    reaches `top_p`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be a number >= 0")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_k is {self.top_k} and top_p {self.top_p}; top_k must be >= 0, 0 < top_p <= 1"
            )


def choose(logits_BV: np.ndarray, config: Sampling, rng: np.random.Generator) -> np.ndarray:
    """One token a row, int32 [B]; of equally likely ones the lowest number comes first."""
    if config.temperature == 0:
        return np.argmax(logits_BV, axis=-1).astype(np.int32)
    return np.array([_draw(row, config, rng) for row in logits_BV], np.int32)


def _draw(logits_V: np.ndarray, config: Sampling, rng: np.random.Generator) -> int:
    scaled = logits_V.astype(np.float64) / config.temperature
    order = np.argsort(-scaled, kind="stable")
    order = order[: config.top_k or len(order)]
    weights = np.exp(scaled[order] - scaled[order[0]])
    weights /= weights.sum()
    count = int(np.searchsorted(np.cumsum(weights), config.top_p)) + 1
    weights = weights[:count] / weights[:count].sum()
    return int(rng.choice(order[:count], p=weights))
