"""Auxiliary losses that keep experts in use: pure functions of what the router said.

Every loss leaves out tokens that are not valid; without any valid token it is 0.
"""

import jax
import jax.numpy as jnp

from moejax.moe.assignment import Routing


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
    return balanced_value * _unevenness(load_E, jnp.mean(probs_TE, axis=0))


def routed_load_balance(
    routing: Routing,
    *,
    balanced_value: float = 1.0,
    num_groups: int = 1,
    free_weight: float = 1.0,
) -> jax.Array:
    """`load_balance` of a routed layer, counting what tokens wanted, before any drop.

    With `num_groups` sequences the mean of each sequence's own value (Switch; DeepSeek's
    sequence-wise loss); with 1 the whole batch is one count. Over several layers at once, as
    Mixtral's relatives do: pass their routings joined by `join`. The scores are scaled to a sum of
    1 a token; balanced_value=top_k gives the form in which f sums to top_k.
    `free_weight` multiplies the free experts' terms f_e P_e (MoE++'s tau): below 1 they are the
    cheaper choice.
    """
    groups = num_groups, routing.valid.shape[0] // num_groups
    valid_GT1 = routing.valid.reshape(groups)[..., None]
    num_outputs = routing.scores.shape[-1]
    wanted_GTk = routing.index.reshape(*groups, routing.index.shape[-1])
    load_GM = jax.vmap(_count, (0, 0, None))(wanted_GTk, valid_GT1, num_outputs)
    probs_GTM = routing.probabilities.reshape(*groups, num_outputs)
    mean_GM = jax.vmap(_mean)(probs_GTM, valid_GT1)
    if free_weight != 1.0:
        is_free_M = jnp.arange(num_outputs) >= routing.num_experts
        mean_GM = mean_GM * jnp.where(is_free_M, free_weight, 1.0)[None]
    return balanced_value * jnp.mean(jax.vmap(_unevenness)(load_GM, mean_GM))


def mean_probability_error(routing: Routing) -> jax.Array:
    """Mean squared difference of the experts' mean probability from 1 / E; at most of order 1/E."""
    mean_M = _mean(routing.probabilities, routing.valid[:, None])
    error = jnp.mean(jnp.square(mean_M - 1 / mean_M.shape[0]))
    return jnp.where(jnp.any(routing.valid), error, 0.0)


def z_loss(routing: Routing) -> jax.Array:
    """Mean over tokens of logsumexp(logits)^2: keeps logits small (ST-MoE)."""
    log_T1 = jax.nn.logsumexp(routing.logits, axis=-1, keepdims=True)
    return _mean(jnp.square(log_T1), routing.valid[:, None])[0]


def router_entropy(routing: Routing) -> jax.Array:
    """Mean over tokens of the entropy of the probabilities, in units of log M: 1 is uniform."""
    probs_TM = routing.probabilities
    log_TM = jnp.log(jnp.maximum(probs_TM, jnp.finfo(jnp.float32).tiny))
    entropy_T1 = -jnp.sum(probs_TM * log_TM, axis=-1, keepdims=True)
    return _mean(entropy_T1, routing.valid[:, None])[0] / jnp.log(max(probs_TM.shape[-1], 2))


def join(routings: list[Routing]) -> Routing:
    """Routings of several layers as one over all their tokens, for the losses."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *routings)


def _unevenness(load_M: jax.Array, mean_prob_M: jax.Array) -> jax.Array:
    share_M = load_M / jnp.maximum(jnp.sum(load_M), 1)
    return load_M.shape[0] * jnp.sum(share_M * mean_prob_M)


def _count(index_Tk: jax.Array, valid_T1: jax.Array, num_outputs: int) -> jax.Array:
    index_Tk = jnp.where(valid_T1, index_Tk, num_outputs)
    return jnp.bincount(index_Tk.reshape(-1), length=num_outputs + 1)[:-1]


def _mean(values_TM: jax.Array, valid_T1: jax.Array) -> jax.Array:
    """Mean over the valid rows: [T, M] -> [M]; 0 without any."""
    total_M = jnp.sum(jnp.where(valid_T1, values_TM, 0.0), axis=0)
    return total_M / jnp.maximum(jnp.sum(valid_T1), 1)
