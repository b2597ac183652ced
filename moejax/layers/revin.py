"""Reversible instance normalisation: standardise a window over time, scale its forecast back."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from moejax.regions import region


@region("moejax.revin_stats", float32=True)
def revin_stats(x_BSC: jax.Array, *, eps: float) -> tuple[jax.Array, jax.Array]:
    """Mean and sqrt(population variance + eps) over time, both [B, 1, C], without gradient."""
    x_BSC = lax.stop_gradient(x_BSC)
    mean_B1C = jnp.mean(x_BSC, axis=1, keepdims=True)
    variance_B1C = jnp.mean(jnp.square(x_BSC - mean_B1C), axis=1, keepdims=True)
    return mean_B1C, jnp.sqrt(variance_B1C + eps)


@region("moejax.revin_norm", float32=True)
def revin_norm(
    x_BSC: jax.Array, mean_B1C: jax.Array, std_B1C: jax.Array, scale_C: jax.Array, bias_C: jax.Array
) -> jax.Array:
    """(x - mean) / std * scale + bias: [B, S, C] -> [B, S, C]."""
    return (x_BSC - mean_B1C) / std_B1C * scale_C[None, None, :] + bias_C[None, None, :]


@region("moejax.revin_denorm", float32=True)
def revin_denorm(
    y_BPC: jax.Array,
    mean_B1C: jax.Array,
    std_B1C: jax.Array,
    scale_C: jax.Array,
    bias_C: jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """(y - bias) / (scale + eps^2) * std + mean: [B, P, C] -> [B, P, C].

    eps^2 keeps a zero scale finite.
    """
    scale_11C = scale_C[None, None, :] + eps * eps
    return (y_BPC - bias_C[None, None, :]) / scale_11C * std_B1C + mean_B1C


class RevIN(nn.Module):
    """Normalisation of a window and its inverse, with a learned scale and bias for each channel.

    Shapes: x [B, S, C], y [B, P, C]; params scale [C], bias [C]. Kim et al., ICLR 2022.
    """

    num_channels: int
    eps: float = 1e-5

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.num_channels,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.num_channels,))

    def stats(self, x_BSC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, std) over time, both [B, 1, C]."""
        return revin_stats(x_BSC, eps=self.eps)

    def normalise(self, x_BSC: jax.Array, stats: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The window in units of its own statistics."""
        return revin_norm(x_BSC, *stats, self.scale, self.bias)

    def restore(self, y_BPC: jax.Array, stats: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The forecast back in the units of its window."""
        return revin_denorm(y_BPC, *stats, self.scale, self.bias, eps=self.eps)
