"""Location and scale of packed series, one pair for each (sample, variate) of a row of tokens.

T tokens of P cells each; a row holds several series, told apart by their numbers.
"""

import jax
import jax.numpy as jnp

from moejax.regions import region

MINIMUM_SCALE = 1e-5


@region("moejax.packed_scale", float32=True)
def packed_scale(
    x_BTP: jax.Array,
    counted_BTP: jax.Array,
    sample_BT: jax.Array,
    variate_BT: jax.Array,
    *,
    minimum: float = MINIMUM_SCALE,
) -> tuple[jax.Array, jax.Array]:
    """(mean, sqrt(variance + minimum)) of the counted cells of each token's series: [B, T, 1] each.

    counted is bool. The variance divides by n - 1. A series without a counted cell has mean 0;
    with one or none its variance is 0. Sample 0 is padding, which gets (0, 1).
    """
    x_BTP = x_BTP.astype(jnp.float32)
    same_BTT = same_series(sample_BT, variate_BT)

    def total(cells_BTP: jax.Array) -> jax.Array:
        """The sum over a token's series, [B, T]."""
        token_BT = jnp.sum(jnp.where(counted_BTP, cells_BTP, 0.0), axis=-1)
        return jnp.sum(jnp.where(same_BTT, token_BT[:, None, :], 0.0), axis=-1)

    count_BT = total(jnp.ones_like(x_BTP))
    divisor_BT = jnp.maximum(count_BT, 1.0)
    # what a rough mean leaves over: a large offset costs no digits
    rough_BT = total(x_BTP) / divisor_BT
    rest_BTP = x_BTP - rough_BT[..., None]
    shift_BT = total(rest_BTP) / divisor_BT
    mean_BT = rough_BT + shift_BT
    spread_BT = total(jnp.square(rest_BTP)) - count_BT * jnp.square(shift_BT)
    spread_BT = jnp.maximum(spread_BT, 0.0)
    variance_BT = spread_BT / jnp.maximum(count_BT - 1.0, 1.0)
    real_BT = sample_BT != 0
    loc_BT = jnp.where(real_BT, mean_BT, 0.0)
    scale_BT = jnp.where(real_BT, jnp.sqrt(variance_BT + minimum), 1.0)
    return loc_BT[..., None], scale_BT[..., None]


@region("moejax.standardise", float32=True)
def standardise(x_BTP: jax.Array, loc: jax.Array, scale: jax.Array) -> jax.Array:
    """(x - loc) / scale in float32; loc and scale are [B, T, 1] or x's shape."""
    return (x_BTP.astype(jnp.float32) - loc) / scale


def same_series(sample_BT: jax.Array, variate_BT: jax.Array) -> jax.Array:
    """bool [B, T, T]: two tokens are of the same sample and variate."""
    sample = sample_BT[:, :, None] == sample_BT[:, None, :]
    return sample & (variate_BT[:, :, None] == variate_BT[:, None, :])
