"""Losses over packed series: every series counts the same, however many cells of it are predicted.

A group is what one row holds of a (sample, variate). T tokens of P cells.
"""

import jax
import jax.numpy as jnp

from moejax.layers.packed_scaler import same_series


def packed_nll(
    log_prob_BTP: jax.Array,
    observed_BTP: jax.Array,
    predicted_BT: jax.Array,
    sample_BT: jax.Array,
    variate_BT: jax.Array,
) -> jax.Array:
    """Minus the mean log density of a group's cells, then the mean over the batch's groups: [].

    Only observed cells (bool) of predicted tokens (bool) count; 0 where there is none. Nothing is
    shifted: cell (t, p) of the log density belongs to cell (t, p) of the masks.
    """
    same_BTT = same_series(sample_BT, variate_BT)
    tokens_BT = jnp.sum(same_BTT & predicted_BT[:, None, :].astype(bool), axis=-1)
    share_BT = jnp.where(predicted_BT.astype(bool), 1 / jnp.maximum(tokens_BT, 1), 0.0)
    groups = jnp.sum(share_BT)
    row_B = sample_nll(log_prob_BTP, observed_BTP, predicted_BT, sample_BT, variate_BT)
    return jnp.sum(row_B) / jnp.where(groups > 0, groups, 1.0)


def sample_nll(
    log_prob_BTP: jax.Array,
    observed_BTP: jax.Array,
    predicted_BT: jax.Array,
    sample_BT: jax.Array,
    variate_BT: jax.Array,
) -> jax.Array:
    """The same summed over the groups of each row, not averaged: [B]."""
    counted_BTP = observed_BTP.astype(bool) & predicted_BT[..., None].astype(bool)
    cells_BT = jnp.sum(counted_BTP, axis=-1)
    same_BTT = same_series(sample_BT, variate_BT)
    group_BT = jnp.sum(jnp.where(same_BTT, cells_BT[:, None, :], 0), axis=-1)
    # what does not count may be infinite
    nll_BT = jnp.sum(jnp.where(counted_BTP, -log_prob_BTP, 0.0), axis=-1)
    return jnp.sum(nll_BT / jnp.maximum(group_BT, 1), axis=-1)
