"""Softmax, and softmax over the k largest."""

import jax
import jax.numpy as jnp
from jax import lax

from moejax.regions import region

# A logit that takes no part. Finite, so that a row without any part left is uniform and not NaN.
EXCLUDED = -1e20


@region("moejax.softmax", float32=True)
def softmax(x: jax.Array, *, axis: int) -> jax.Array:
    """exp(x) / sum(exp(x)) along `axis`; same shape and dtype as x."""
    shifted = x - lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    weights = jnp.exp(shifted)
    return weights / jnp.sum(weights, axis=axis, keepdims=True)


def exclude(logits: jax.Array, keep: jax.Array) -> jax.Array:
    """Logits with -1e20 where `keep` (same shape, 0/1 or bool) is false."""
    return jnp.where(keep > 0, logits, jnp.asarray(EXCLUDED, logits.dtype))


@region("moejax.top_k_mask", float32=True)
def top_k_mask(logits_BK: jax.Array, *, k: int) -> jax.Array:
    """1.0 for the k largest of each row, else 0.0: [B, K] -> [B, K].

    Of equal logits the lowest index wins; as in lax.top_k, 0.0 is larger than -0.0.
    """
    ids_Bk = lax.top_k(logits_BK, k)[1]
    experts_K = jnp.arange(logits_BK.shape[-1], dtype=ids_Bk.dtype)
    hits_BkK = (ids_Bk[:, :, None] == experts_K[None, None, :]).astype(logits_BK.dtype)
    return jnp.sum(hits_BkK, axis=1)


@region("moejax.top_k_softmax", float32=True)
def top_k_softmax(logits_BK: jax.Array, *, k: int) -> jax.Array:
    """Softmax over the k largest logits of each row, exactly 0 elsewhere: [B, K] -> [B, K]."""
    return softmax(exclude(logits_BK, top_k_mask(logits_BK, k=k)), axis=-1)
