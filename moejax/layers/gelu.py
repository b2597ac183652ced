"""The Gaussian error linear unit, in its exact form and in the form with tanh."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from moejax.regions import region

SQRT_HALF = 0.7071067811865476
SQRT_2_OVER_PI = 0.7978845608028654
CUBIC = 0.044715


@region("moejax.gelu")
def gelu(x: jax.Array, *, form: Literal["exact", "tanh"] = "exact") -> jax.Array:
    """x * Phi(x) with the normal distribution's Phi ("exact"), or its usual approximation."""
    if form == "exact":
        return 0.5 * x * (1 + lax.erf(x * SQRT_HALF))
    if form == "tanh":
        return 0.5 * x * (1 + jnp.tanh(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)))
    raise ValueError(f"form is {form!r}; choose 'exact' or 'tanh'")
