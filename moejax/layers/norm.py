"""Normalisation over features. Statistics are float32, results have the dtype of the input."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from moejax.regions import region


@region("moejax.rms_norm")
def rms_norm(x: jax.Array, scale_D: jax.Array | None = None, *, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis: [..., D] -> [..., D]."""
    return _scaled(_unit(x.astype(jnp.float32), eps), scale_D).astype(x.dtype)


@region("moejax.layer_norm")
def layer_norm(
    x: jax.Array,
    scale_D: jax.Array | None = None,
    bias_D: jax.Array | None = None,
    *,
    eps: float,
) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis: [..., D] -> [..., D]."""
    centred = x.astype(jnp.float32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    y = _scaled(_unit(centred, eps), scale_D)
    if bias_D is not None:
        y = y + _row(bias_D, y)
    return y.astype(x.dtype)


def _unit(x: jax.Array, eps: float) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def _scaled(x: jax.Array, scale_D: jax.Array | None) -> jax.Array:
    return x if scale_D is None else x * _row(scale_D, x)


def _row(vector_D: jax.Array, like: jax.Array) -> jax.Array:
    return vector_D.reshape((1,) * (like.ndim - 1) + vector_D.shape)


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis: [..., D] -> [..., D]; params scale (and bias)."""

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if self.kind == "rms_norm":
            return rms_norm(x, scale_D, eps=self.eps)
        bias_D = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale_D, bias_D, eps=self.eps)
