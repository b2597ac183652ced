"""Auxiliary losses that keep experts in use: pure functions of what the router said."""

import jax
import jax.numpy as jnp


def load_balance(
    probs_TE: jax.Array, assigned_TE: jax.Array, *, balanced_value: float = 1.0
) -> jax.Array:
    """balanced_value * E * sum_e f_e P_e, a scalar: how unevenly the experts are used.

    f_e is expert e's share of all assignments (they sum to 1; no gradient), P_e the mean of its
    probability over the T rows. Uniform use gives `balanced_value`: 1, or top_k for the form of
    Mixtral and its relatives. All rows on one expert, with certainty, give balanced_value * E.
    `assigned` holds 0/1 for a routed layer. A dense mixture passes its probabilities there; the
    loss is then 1 + the squared coefficient of variation of the experts' mean weights.
    """
    load_E = jnp.sum(jax.lax.stop_gradient(assigned_TE), axis=0)
    share_E = load_E / jnp.maximum(jnp.sum(load_E), 1)
    return balanced_value * probs_TE.shape[-1] * jnp.sum(share_E * jnp.mean(probs_TE, axis=0))
