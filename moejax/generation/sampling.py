"""Choosing the next token: pure functions of logits [B, V], with the semantics of transformers.

V is the size of the vocabulary. Filters set the logits of tokens that are out to -inf; `adjust`
applies those that a SamplingConfig asks for, in the order of transformers' logits processors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is chosen: the best one, unless there is a temperature.

    `temperature` 1 draws from the probabilities as they are. `top_k` 0 keeps all tokens,
    as do `top_p` 1 and `min_p` 0. `repetition_penalty` above 1 makes tokens of the prompt and of
    the continuation less probable. `seed` draws; equal seeds give equal tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        allowed = {
            "temperature": (self.temperature >= 0, ">= 0"),
            "top_k": (self.top_k >= 0, ">= 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "seed": (0 <= self.seed < 2**32, "from 0 to 2^32 - 1"),
        }
        for name, (fine, rule) in allowed.items():
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {rule}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def knobs(self) -> dict[str, jax.Array]:
        """The numbers of the filters that do something.

        Their names decide what is compiled; their values are arguments of the compiled function.
        """
        active: dict[str, float] = {}
        if self.repetition_penalty != 1:
            active["repetition_penalty"] = self.repetition_penalty
        if not self.greedy:
            settings = {
                "temperature": (self.temperature, 1),
                "top_k": (self.top_k, 0),
                "top_p": (self.top_p, 1),
                "min_p": (self.min_p, 0),
            }
            active["temperature"] = self.temperature
            active |= {name: value for name, (value, off) in settings.items() if value != off}
        return {name: jnp.asarray(value) for name, value in active.items()}


def sample(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    knobs: dict[str, jax.Array],
    seen_BV: jax.Array | None = None,
) -> jax.Array:
    """int32 [B]: the next tokens; drawn where the knobs hold a temperature, else the best."""
    logits_BV = adjust(logits_BV, knobs, seen_BV)
    if "temperature" not in knobs:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def adjust(
    logits_BV: jax.Array, knobs: dict[str, jax.Array], seen_BV: jax.Array | None = None
) -> jax.Array:
    """The logits after the filters that `knobs` names; `seen` is needed by the penalty alone."""
    if "repetition_penalty" in knobs:
        if seen_BV is None:
            raise ValueError("repetition_penalty needs `seen`, the tokens that occurred: [B, V]")
        logits_BV = penalise_repetition(logits_BV, knobs["repetition_penalty"], seen_BV)
    for name, filter_ in FILTERS.items():
        if name in knobs:
            logits_BV = filter_(logits_BV, knobs[name])
    return logits_BV


def penalise_repetition(
    logits_BV: jax.Array, penalty: jax.Array | float, seen_BV: jax.Array
) -> jax.Array:
    """Positive logits of seen tokens over the penalty, negative ones times it (CTRL)."""
    penalised = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(seen_BV, penalised, logits_BV)


def scale(logits_BV: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Logits over the temperature."""
    return logits_BV / temperature


def keep_top_k(logits_BV: jax.Array, k: jax.Array | int) -> jax.Array:
    """The k largest, and what equals the last of them."""
    descending = jnp.sort(logits_BV, axis=-1, descending=True)
    last = jnp.clip(k, 1, logits_BV.shape[-1]) - 1
    least = jax.lax.dynamic_slice_in_dim(descending, last, 1, axis=-1)
    return jnp.where(logits_BV < least, -jnp.inf, logits_BV)


def keep_top_p(logits_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """The fewest of the best tokens with a total probability of at least p, and their equals."""
    ascending_BV = jnp.sort(logits_BV, axis=-1)
    below_BV = jnp.cumsum(jax.nn.softmax(ascending_BV, axis=-1), axis=-1)
    out_BV = (below_BV <= 1 - p).at[:, -1].set(False)
    least_B1 = jnp.min(jnp.where(out_BV, jnp.inf, ascending_BV), axis=-1, keepdims=True)
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


def keep_min_p(logits_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """The tokens at least p times as probable as the best."""
    probability_BV = jax.nn.softmax(logits_BV, axis=-1)
    least_B1 = p * jnp.max(probability_BV, axis=-1, keepdims=True)
    return jnp.where(probability_BV < least_B1, -jnp.inf, logits_BV)


FILTERS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "temperature": scale,
    "top_k": keep_top_k,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
}


def mark_seen(seen_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """`seen` with one more token of each row."""
    return seen_BV.at[jnp.arange(len(token_B)), token_B].set(True)


def seen_tokens(ids_BS: jax.Array, mask_BS: jax.Array, vocab_size: int) -> jax.Array:
    """bool [B, V]: the tokens that occur in each row; padding doesn't count."""
    ids_BS = jnp.where(mask_BS, ids_BS, vocab_size)
    empty = jnp.zeros((len(ids_BS), vocab_size), bool)
    return empty.at[jnp.arange(len(ids_BS))[:, None], ids_BS].set(True, mode="drop")
