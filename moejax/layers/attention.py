"""Scaled dot-product attention with grouped key heads.

N is the number of query heads, M that of key heads (M divides N), S the queries, T the keys, H the
width of a head, V that of its values. Query head n reads key head n // (N / M).
"""

import jax
import jax.numpy as jnp

from moejax.regions import region

# A score that takes no part. Finite, so that a row without any key is uniform and not NaN.
EXCLUDED = -1e9


@region("moejax.attention")
def attention(
    q_BNSH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTV: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    scale: float,
    causal: bool = False,
) -> jax.Array:
    """softmax(scale * q k^T + bias) v: [B, N, S, H], [B, M, T, H], [B, M, T, V] -> [B, N, S, V].

    mask (bool, False: no attention) and bias are [B or 1, N or 1, S or 1, T]. With `causal`, query
    i sees the keys up to i + T - S. Scores and softmax are float32.
    """
    weights = _weights(q_BNSH, k_BMTH, mask, bias, scale, causal).astype(v_BMTV.dtype)
    return _mix(weights, v_BMTV)


def attention_dropout(
    key: jax.Array,
    q_BNSH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTV: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    scale: float,
    rate: float,
) -> jax.Array:
    """The same for training: a share `rate` of the weights becomes 0, the rest grows to make up."""
    weights = _weights(q_BNSH, k_BMTH, mask, bias, scale, False).astype(v_BMTV.dtype)
    keep = jax.random.bernoulli(key, 1 - rate, weights.shape)
    return _mix(jnp.where(keep, weights / (1 - rate), 0.0), v_BMTV)


def _weights(q_BNSH, k_BMTH, mask, bias, scale: float, causal: bool) -> jax.Array:
    """Softmax of the scores: float32 [B, N, S, T]."""
    batch, heads, steps, width = q_BNSH.shape
    groups, keys = k_BMTH.shape[1:3]
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot share {groups} key heads evenly")
    q_BMRH = q_BNSH.reshape(batch, groups, heads // groups * steps, width)
    scores = jnp.einsum("bmrh,bmth->bmrt", q_BMRH, k_BMTH, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, steps, keys) * scale
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias, scores.shape)
    if causal:
        scores = jnp.where(causal_mask(steps, keys), scores, EXCLUDED)
    if mask is not None:
        scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, EXCLUDED)
    return jax.nn.softmax(scores, axis=-1)


def _mix(weights: jax.Array, v_BMTV: jax.Array) -> jax.Array:
    """Values by their weights [B, N, S, T]: [B, N, S, V]."""
    batch, heads, steps, keys = weights.shape
    groups = v_BMTV.shape[1]
    weights_BMRT = weights.reshape(batch, groups, heads // groups * steps, keys)
    y_BMRV = jnp.einsum("bmrt,bmtv->bmrv", weights_BMRT, v_BMTV)
    return y_BMRV.reshape(batch, heads, steps, -1)


def causal_mask(steps: int, keys: int, shift: int = 0) -> jax.Array:
    """bool [1, 1, S, T]: whether query i sees key j, j <= i + T - S + shift."""
    return jnp.tril(jnp.ones((steps, keys), bool), keys - steps + shift)[None, None]
