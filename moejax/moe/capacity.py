"""Capacity: how many tokens an expert takes, who comes first, and what happens to the rest.

Letters as in assignment.py, and A = T * k choices, in the order in which they queue.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp

from moejax.moe.assignment import Routing
from moejax.moe.config import CapacityConfig


def capacity_of(config: CapacityConfig, num_tokens: int, num_experts: float, top_k: int) -> int:
    """Places of an expert for a group of tokens; at least 1, at most the number of tokens."""
    wanted = num_tokens * (top_k if config.counts_k else 1) / num_experts * config.factor
    places = max(math.ceil(wanted - 1e-9), config.minimum)
    if config.maximum is not None:
        places = min(places, config.maximum)
    return max(min(places, num_tokens), 1)


def queue_order(routing: Routing, order: str, importance_T: jax.Array | None = None) -> jax.Array:
    """[A] int32: the choices (t * k + slot) in the order in which they queue.

    `importance`, higher first, is for "priority"; without it the largest score of a token.
    """
    num_tokens, k = routing.index.shape
    choices_Tk = jnp.arange(num_tokens * k, dtype=jnp.int32).reshape(num_tokens, k)
    if order == "token_major":
        return choices_Tk.reshape(-1)
    if order == "priority":
        if importance_T is None:
            importance_T = jnp.max(routing.scores, axis=-1)
        choices_Tk = choices_Tk[jnp.argsort(-jax.lax.stop_gradient(importance_T), stable=True)]
    return choices_Tk.T.reshape(-1)


def queue_positions(routing: Routing, order_A: jax.Array, num_groups: int = 1) -> jax.Array:
    """[T, k] int32: place of each choice in the queue of its expert and group, -1 if it has none.

    Those that find the queue full count too: a place is not given to the next.
    """
    num_tokens, k = routing.index.shape
    num_queues = num_groups * routing.num_experts
    group_T = jnp.arange(num_tokens, dtype=jnp.int32) // max(num_tokens // num_groups, 1)
    queue_Tk = group_T[:, None] * routing.num_experts + routing.index
    queue_A = jnp.where(routing.served, queue_Tk, num_queues).reshape(-1)[order_A]
    by_queue_A = jnp.argsort(queue_A, stable=True)
    length_Q = jnp.bincount(queue_A, length=num_queues + 1)
    start_Q = jnp.cumsum(length_Q) - length_Q
    sorted_A = queue_A[by_queue_A]
    rank_A = jnp.arange(num_tokens * k) - start_Q[sorted_A]
    rank_A = jnp.where(sorted_A < num_queues, rank_A, -1).astype(jnp.int32)
    position_A = jnp.zeros(num_tokens * k, jnp.int32).at[order_A[by_queue_A]].set(rank_A)
    return position_A.reshape(num_tokens, k)


def apply_capacity(
    routing: Routing,
    config: CapacityConfig,
    *,
    num_groups: int = 1,
    importance_T: jax.Array | None = None,
    ramp: jax.Array | float = 1.0,
    total: float = 1.0,
    tau: float | None = None,
) -> Routing:
    """Drop the choices that find their expert full.

    `num_groups` is the number of sequences of equal length, for scope "sequence". `ramp`, traced
    or not, is the share of the way from `minimum` places to all of them, for a capacity that grows
    in training; shapes are those of the full one. Free experts have room for all; with `tau` each
    takes its share of the tokens off the real ones, as 1 / tau experts would (MoE++). Renormalised
    weights of a token sum to `total`. ValueError if the tokens do not form the groups.
    """
    num_tokens, k = routing.index.shape
    if config.scope == "batch":
        num_groups = 1
    if num_groups < 1 or num_tokens % num_groups:
        raise ValueError(f"{num_tokens} tokens cannot form {num_groups} sequences of equal length")
    num_free = routing.logits.shape[-1] - routing.num_experts
    sharers = routing.num_experts + (num_free / tau if tau else 0)
    places = capacity_of(config, num_tokens // num_groups, sharers, k)
    position_Tk = routing.position
    if position_Tk is None or (routing.order, routing.num_groups) != (config.order, num_groups):
        order_A = queue_order(routing, config.order, importance_T)
        position_Tk = queue_positions(routing, order_A, num_groups)
    room = places
    if not isinstance(ramp, float) or ramp < 1:
        fewest = min(config.minimum, places)
        room = fewest + jnp.floor(ramp * (places - fewest)).astype(jnp.int32)
    keep_Tk = routing.keep & (position_Tk < room)
    weight_Tk = routing.weight
    if config.renormalise:
        left_T1 = jnp.sum(jnp.where(keep_Tk, weight_Tk, 0.0), axis=-1, keepdims=True)
        weight_Tk = weight_Tk * (total / jnp.maximum(left_T1, jnp.finfo(jnp.float32).eps))
    return replace(
        routing,
        weight=weight_Tk,
        keep=keep_Tk,
        position=position_Tk,
        capacity=places,
        num_groups=num_groups,
    )


def overflow_to(output: int, wanted: Routing, kept: Routing) -> Routing:
    """Choices dropped over capacity go to this output of the router, a free expert, at the weight
    that they had.
    """
    dropped_Tk = wanted.keep & ~kept.keep
    index_Tk = jnp.where(dropped_Tk, output, kept.index)
    return replace(kept, index=index_Tk, keep=wanted.keep)
