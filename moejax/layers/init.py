"""Initialisers."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

# Normal, of variance 1 / inputs, cut at two deviations: kernels [in, out], and stacks of them.
FAN_IN = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=()
)
STACKED_FAN_IN = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=(0,)
)


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Uniform in +-1/sqrt(fan_in): what torch.nn.Linear gives its weight and its bias."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
