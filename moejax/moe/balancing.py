"""Balancing without a loss: the router's correction bias, moved by the load after each step.

The bias is no parameter. It lives in the variable collection "router_state", out of the reach of
gradients and weight decay, and changes only here, once for each optimiser step.
"""

from typing import Any

import jax
import jax.numpy as jnp

COLLECTION = "router_state"


def update_router_state(state: Any, counts: Any, *, rate: float = 1e-3) -> Any:
    """bias += rate * sign(mean load - load), for every bias of a "router_state" collection.

    `counts` has the structure of `state`, with the assignments of each expert in place of its bias
    (see `moejax.moe.layer.router_counts`): those of the whole global batch, before any drop, summed
    over devices and accumulated gradients. Experts with less than their share become likelier.
    """

    def move(bias_M: jax.Array, counts_M: jax.Array) -> jax.Array:
        load_M = counts_M.astype(jnp.float32)
        return bias_M + rate * jnp.sign(jnp.mean(load_M, axis=-1, keepdims=True) - load_M)

    return jax.tree.map(move, state, counts)
