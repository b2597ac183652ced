"""Initialisers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def uniform_fan_in(fan_in: int) -> Callable[..., jax.Array]:
    """Uniform in +-1/sqrt(fan_in): what torch.nn.Linear gives its weight and its bias."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
