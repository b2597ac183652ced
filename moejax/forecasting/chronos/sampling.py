"""Drawing the next token of a forecast: the end is forbidden, then temperature, top-k, top-p.

R rows, V tokens, k of them kept. The order and the treatment of equals are those of transformers.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from moejax.checks import require_positive
from moejax.generation.sampling import keep_top_k, keep_top_p

# A uniform number just below 1 times a sum stays below the sum.
_LARGEST = 1 - 2.0**-22


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn: `top_k` 0 keeps all, as does `top_p` 1."""

    num_samples: int
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0

    def __post_init__(self):
        require_positive("num_samples", self.num_samples)
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k!r}; it must be a whole number >= 0")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be a number above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


def forbid(logits_RV: jax.Array, token: int) -> jax.Array:
    """Logits with -inf for the token."""
    return jnp.where(jnp.arange(logits_RV.shape[-1])[None] == token, -jnp.inf, logits_RV)


def warp(logits_RV: jax.Array, temperature, top_k: int, top_p) -> jax.Array:
    """The logits after all filters; `top_p` None keeps all."""
    logits_RV = logits_RV / temperature
    if 0 < top_k < logits_RV.shape[-1]:
        logits_RV = keep_top_k(logits_RV, top_k)
    return logits_RV if top_p is None else keep_top_p(logits_RV, top_p)


def draw(
    logits_RV: jax.Array, uniform_R: jax.Array, keys_R: jax.Array, temperature, top_k: int, top_p
) -> jax.Array:
    """int32 [R]: a token of each row by its number in [0, 1).

    Only the k largest are sorted. Where others equal the last of them, these may be drawn too: then
    the rows are drawn from all tokens by their keys.
    """
    if not 0 < top_k < logits_RV.shape[-1]:
        return _draw_any(logits_RV, keys_R, temperature, top_k, top_p)
    # XLA turns a top-k of which a slice is read into a sort of all
    best_Rk, ids_Rk = lax.optimization_barrier(lax.top_k(logits_RV, top_k))
    least_R1 = best_Rk[:, -1:]
    kept_R = jnp.sum((logits_RV >= least_R1).astype(jnp.int32), axis=-1)
    return lax.cond(
        jnp.any(kept_R > top_k),
        lambda: _draw_any(logits_RV, keys_R, temperature, top_k, top_p),
        lambda: _draw_best(best_Rk, ids_Rk, uniform_R, temperature, top_p),
    )


def _draw_any(logits_RV, keys_R, temperature, top_k: int, top_p) -> jax.Array:
    logits_RV = warp(logits_RV, temperature, top_k, top_p)
    return jax.vmap(jax.random.categorical)(keys_R, logits_RV).astype(jnp.int32)


def _draw_best(best_Rk, ids_Rk, uniform_R, temperature, top_p) -> jax.Array:
    """By inverting the distribution over the k best, in descending order."""
    weight_Rk = jax.nn.softmax(best_Rk / temperature, axis=-1)
    if top_p is not None:
        tail_Rk = jnp.cumsum(weight_Rk[:, ::-1], axis=-1)[:, ::-1]
        keep_Rk = (tail_Rk > 1 - top_p).at[:, 0].set(True)
        weight_Rk = jnp.where(keep_Rk, weight_Rk, 0.0)
    upto_Rk = jnp.cumsum(weight_Rk, axis=-1)
    wanted_R1 = jnp.minimum(uniform_R, _LARGEST)[:, None] * upto_Rk[:, -1:]
    index_R = jnp.sum((upto_Rk <= wanted_R1).astype(jnp.int32), axis=-1)
    last_R = jnp.sum((weight_Rk > 0).astype(jnp.int32), axis=-1) - 1
    index_R1 = jnp.minimum(index_R, last_R)[:, None]
    return jnp.take_along_axis(ids_Rk, index_R1, axis=-1)[:, 0].astype(jnp.int32)
