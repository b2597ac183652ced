"""Seasonal-trend decomposition of a window, and the linear forecast on top of it (DLinear)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moejax.layers.linear import TimeLinear, time_linear
from moejax.regions import region


@region("moejax.moving_average")
def moving_average(x_BSC: jax.Array, *, kernel_size: int) -> jax.Array:
    """Mean of the `kernel_size` steps around each step: [B, S, C] -> [B, S, C].

    The first and the last step are repeated beyond the ends. ValueError for an even kernel_size.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; a centred window needs an odd size >= 1")
    if kernel_size == 1:
        return x_BSC
    edge = (x_BSC.shape[0], kernel_size // 2, x_BSC.shape[2])
    first, last = (jnp.broadcast_to(step, edge) for step in (x_BSC[:, :1], x_BSC[:, -1:]))
    padded = jnp.concatenate([first, x_BSC, last], axis=1)
    zero = np.zeros((), x_BSC.dtype)
    total = lax.reduce_window(padded, zero, lax.add, (1, kernel_size, 1), (1, 1, 1), "valid")
    return total / kernel_size


def decompose(x_BSC: jax.Array, *, kernel_size: int) -> tuple[jax.Array, jax.Array]:
    """(seasonal, trend), both [B, S, C]: the trend is the moving average, seasonal the rest."""
    trend_BSC = moving_average(x_BSC, kernel_size=kernel_size)
    return x_BSC - trend_BSC, trend_BSC


@region("moejax.decomposed_linear")
def decomposed_linear(
    x_BSC: jax.Array,
    seasonal_kernel_SQ: jax.Array,
    seasonal_bias_Q: jax.Array,
    trend_kernel_SQ: jax.Array,
    trend_bias_Q: jax.Array,
    *,
    kernel_size: int,
) -> jax.Array:
    """Linear maps over time of seasonal part and trend, added: [B, S, C] -> [B, Q, C]."""
    seasonal_BSC, trend_BSC = decompose(x_BSC, kernel_size=kernel_size)
    seasonal_BQC = time_linear(seasonal_BSC, seasonal_kernel_SQ, seasonal_bias_Q)
    return seasonal_BQC + time_linear(trend_BSC, trend_kernel_SQ, trend_bias_Q)


class DecomposedLinear(nn.Module):
    """DLinear's map: a projection of the seasonal part plus a projection of the trend.

    Shapes: [B, S, C] -> [B, Q, C]; params seasonal and trend, each as in TimeLinear. With
    `num_channels` every channel has projections of its own.
    """

    num_inputs: int
    num_outputs: int
    num_channels: int | None
    kernel_size: int

    def setup(self):
        sizes = self.num_inputs, self.num_outputs, self.num_channels
        self.seasonal = TimeLinear(*sizes)
        self.trend = TimeLinear(*sizes)

    def __call__(self, x_BSC: jax.Array) -> jax.Array:
        if self.num_channels is None:
            seasonal = self.seasonal.kernel, self.seasonal.bias
            trend = self.trend.kernel, self.trend.bias
            return decomposed_linear(x_BSC, *seasonal, *trend, kernel_size=self.kernel_size)
        seasonal_BSC, trend_BSC = decompose(x_BSC, kernel_size=self.kernel_size)
        return self.seasonal(seasonal_BSC) + self.trend(trend_BSC)
