"""Dispatch: tokens to their experts and back, in ways that are equal but for rounding and speed.

Every function takes (x [T, D], Routing, expert parameters) and gives float32 [T, D]: the sum over a
token's served choices of weight times expert output. DISPATCH is the one table.

| name     | how                                              | for                               |
|----------|--------------------------------------------------|-----------------------------------|
| dense    | every expert on every token                      | few experts, lowering, reference  |
| gather   | slots of fixed size, batched matmuls             | accelerators, training by capacity|
| blockpad | rows sorted by expert, loops over blocks         | CPU, any number of tokens         |
| ragged   | rows sorted by expert, lax.ragged_dot            | accelerators without capacity     |
| onehot   | GShard's one-hot matmuls over groups of tokens   | TPU-like hardware, comparison     |
| indexed  | copies of the chosen experts' weights            | a few tokens, lowering            |
| grouped  | rows sorted by expert, kernels of our own        | NVIDIA GPUs, any number of tokens |
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from moejax.checks import require_choice
from moejax.kernels.grouped import LANES, kernels_here, why_not
from moejax.moe.assignment import Routing
from moejax.moe.blocks import block_sizes, sorted_experts, spare_rows
from moejax.moe.capacity import queue_order, queue_positions
from moejax.moe.experts import (
    Params,
    combine_activations,
    combine_weights,
    expert_mlp,
    experts_dense,
    experts_indexed,
    narrow,
    num_experts,
)
from moejax.moe.grouped import grouped_experts, make_layout
from moejax.moe.grouped_limit import limited_experts
from moejax.moe.permute import capacity_slots, collect, sorted_slots, spread

Implementation = Literal[
    "auto", "dense", "gather", "blockpad", "ragged", "onehot", "indexed", "grouped"
]
# Tokens of a group of `onehot` without capacity: its cost is quadratic in them.
ONEHOT_GROUP = 64


def dispatch(
    x_TD: jax.Array, routing: Routing, params: Params, implementation: Implementation = "auto"
) -> jax.Array:
    """Sum of the outputs of each token's experts: [T, D] -> [T, D] of the same dtype.

    "auto" picks by platform and shape. ValueError for sizes that do not fit each other.
    """
    require_choice("implementation", implementation, ("auto", *DISPATCH))
    if num_experts(params) != routing.num_experts:
        raise ValueError(
            f"the parameters hold {num_experts(params)} experts, the routing is for"
            f" {routing.num_experts}"
        )
    if x_TD.ndim != 2 or len(x_TD) != len(routing.index):
        raise ValueError(f"x has shape {x_TD.shape}; the routing is for {len(routing.index)} rows")
    if x_TD.shape[0] == 0:
        return x_TD
    name = implementation
    if name == "auto":
        name = choose(routing, jax.default_backend(), kernels=why_not(x_TD, params) is None)
    return narrow(DISPATCH[name](x_TD, routing, params), x_TD.dtype)


def choose(routing: Routing, platform: str, *, kernels: bool = False) -> str:
    """The dispatch that "auto" stands for; `kernels`: those of "grouped" can serve."""
    num_tokens, k = routing.index.shape
    if platform == "cpu":
        return "blockpad"
    if num_tokens * k <= routing.num_experts:
        return "indexed"
    if kernels:
        return "grouped"
    return "ragged" if routing.capacity is None else "gather"


def dense(x_TD: jax.Array, routing: Routing, params: Params) -> jax.Array:
    """Every expert on every token, times the matrix of weights."""
    weights = combine_weights(routing.index, routing.kept_weight, num_experts=routing.num_experts)
    return experts_dense(_live(x_TD, routing), weights, params)


def indexed(x_TD: jax.Array, routing: Routing, params: Params) -> jax.Array:
    """The chosen experts' weights, copied for each token."""
    index_Tk = jnp.where(routing.served, routing.index, 0)
    weight_Tk = jnp.where(routing.served, routing.weight, 0.0)
    return experts_indexed(_live(x_TD, routing), index_Tk, weight_Tk, params)


def gather(x_TD: jax.Array, routing: Routing, params: Params) -> jax.Array:
    """Slots of the capacity's size; without capacity each expert has room for every token."""
    slots = capacity_slots(routing, _positions(routing))
    x_ND = spread(x_TD, slots)
    x_ECD = x_ND.reshape(routing.num_experts, -1, x_TD.shape[1])
    y_ND = _slot_mlp(x_ECD, params).reshape(x_ND.shape)
    return collect(y_ND, routing.kept_weight, slots)


def blockpad(x_TD: jax.Array, routing: Routing, params: Params) -> jax.Array:
    """Rows sorted by expert, in blocks."""
    sizes = block_sizes(routing.index.size, routing.num_experts)
    slots, count_E = sorted_slots(routing, spare=spare_rows(sizes))
    y_ND = sorted_experts(spread(x_TD, slots), count_E, params, sizes)
    return collect(y_ND, routing.kept_weight, slots)


def ragged(x_TD: jax.Array, routing: Routing, params: Params) -> jax.Array:
    """Rows sorted by expert, grouped matmuls by lax.ragged_dot."""
    slots, count_E = sorted_slots(routing)
    x_ND = spread(x_TD, slots)
    # rows behind the last group belong to no expert; their bias is that of none
    expert_N = jnp.searchsorted(jnp.cumsum(count_E), jnp.arange(len(x_ND)), side="right")

    def project(rows_ND, name):
        y = lax.ragged_dot(
            rows_ND, params[name], count_E, preferred_element_type=jnp.dtype(jnp.float32)
        )
        if f"{name}_bias" in params:
            y += params[f"{name}_bias"].at[expert_N].get(mode="fill", fill_value=0).astype(y.dtype)
        return y

    pre = tuple(project(x_ND, name) for name in ("gate", "up") if name in params)
    hidden_NH = narrow(combine_activations(pre), x_TD.dtype)
    return collect(project(hidden_NH, "down"), routing.kept_weight, slots)


def grouped(
    x_TD: jax.Array, routing: Routing, params: Params, limit: int | None = None
) -> jax.Array:
    """Rows sorted by expert, whole tiles of each; grouped matmuls by kernels for NVIDIA GPUs.

    `limit`: served choices that are expected at most; more take longer. What the kernels cannot
    serve runs as "auto" would without them, after one warning. Widths that are no multiples of
    LANES are padded with zeros, which copies the weights.
    """
    obstacle = why_not(x_TD, params)
    if obstacle is not None:
        name = choose(routing, jax.default_backend())
        _warn(f"dispatch 'grouped' {obstacle}; {name!r} runs instead")
        return DISPATCH[name](x_TD, routing, params)
    implementation = kernels_here() or "xla"
    width = x_TD.shape[1]
    params = {name: _to_lanes(leaf, (1, 2)) for name, leaf in params.items()}
    inputs = _to_lanes(x_TD, (1,)), routing.kept_weight, params
    if limit is None or limit >= routing.index.size:
        y_TD = grouped_experts(*inputs, make_layout(routing), implementation)
    else:
        y_TD = limited_experts(*inputs, routing, limit, implementation)
    return y_TD[:, :width]


def onehot(x_TD: jax.Array, routing: Routing, params: Params) -> jax.Array:
    """GShard's form: one-hot tensors [G, S, E, C] carry tokens to slots and back by matmuls."""
    num_tokens, width = x_TD.shape
    if routing.capacity is None:
        size = _divisor(num_tokens, ONEHOT_GROUP)
        routing = replace(routing, num_groups=num_tokens // size, capacity=size, position=None)
    groups, places = routing.num_groups, routing.capacity or 1
    position_Tk = _positions(routing)
    slot_Tk = jnp.where(routing.served, routing.index * places + position_Tk, -1)
    slots_N = jnp.arange(routing.num_experts * places)
    hit_TkN = slot_Tk[:, :, None] == slots_N[None, None, :]
    shape = groups, num_tokens // groups, routing.num_experts, places
    sent_GSEC = jnp.any(hit_TkN, axis=1).reshape(shape).astype(x_TD.dtype)
    weight_TkN = jnp.where(hit_TkN, routing.kept_weight[:, :, None], 0.0)
    weight_GSEC = jnp.sum(weight_TkN, axis=1).reshape(shape)
    x_GSD = _live(x_TD, routing).reshape(*shape[:2], width)
    x_EGCD = jnp.einsum("gsec,gsd->egcd", sent_GSEC, x_GSD)
    y_END = expert_mlp(x_EGCD.reshape(routing.num_experts, groups * places, width), params)
    y_EGCD = y_END.reshape(x_EGCD.shape)
    return jnp.einsum("gsec,egcd->gsd", weight_GSEC, y_EGCD).reshape(num_tokens, width)


@cache
def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)


def _to_lanes(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """x with zeros behind, up to multiples of LANES along some axes."""
    if all(x.shape[axis] % LANES == 0 for axis in axes):
        return x
    spare = [(0, -size % LANES if axis in axes else 0) for axis, size in enumerate(x.shape)]
    return jnp.pad(x, spare)


def _live(x_TD: jax.Array, routing: Routing) -> jax.Array:
    """x with 0 for tokens that take no part: 0 times their NaN would be NaN for others too."""
    return jnp.where(routing.valid[:, None], x_TD, jnp.zeros((), x_TD.dtype))


def _slot_mlp(x_ECD: jax.Array, params: Params) -> jax.Array:
    """Each expert on its own slots, keeping no more for the gradient than what matmuls gave."""
    mlp = jax.checkpoint(expert_mlp, policy=jax.checkpoint_policies.dots_saveable)
    if jax.default_backend() == "cpu":
        # one expert after the other: what they share stays in the cache
        return lax.map(lambda one: mlp(*one), (x_ECD, params))
    return mlp(x_ECD, params)


def _positions(routing: Routing) -> jax.Array:
    if routing.position is not None:
        return routing.position
    return queue_positions(routing, queue_order(routing, "token_major"), routing.num_groups)


def _divisor(number: int, largest: int) -> int:
    """The largest divisor of a number up to a bound."""
    return next(size for size in range(min(largest, number), 0, -1) if number % size == 0)


DISPATCH: dict[str, Callable[[jax.Array, Routing, Params], jax.Array]] = {
    "dense": dense,
    "gather": gather,
    "blockpad": blockpad,
    "ragged": ragged,
    "onehot": onehot,
    "indexed": indexed,
    "grouped": grouped,
}
