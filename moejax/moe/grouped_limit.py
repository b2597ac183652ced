"""Grouped experts where most choices belong to other devices: buffers for what is expected.

Buffers have one size, whatever the router says. Room for every choice that could come here would
be several times what does come, and all but the grouped products go over all of it. So there is
room for `limit` choices; a step with more of them runs once more with room for all, and gives the
same result more slowly. Nothing is dropped.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from moejax.kernels.grouped import Implementation
from moejax.moe import grouped
from moejax.moe.assignment import Routing
from moejax.moe.experts import Params


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def limited_experts(
    x_TD: jax.Array,
    weight_Tk: jax.Array,
    params: Params,
    routing: Routing,
    limit: int,
    implementation: Implementation,
) -> jax.Array:
    """`grouped_experts` with room for `limit` choices where those suffice."""
    return _forward(x_TD, weight_Tk, params, routing, limit, implementation)[0]


def _forward(x_TD, weight_Tk, params, routing, limit, implementation):
    layout = grouped.make_layout(routing, limit)
    fits = layout.tiles.used[0] <= len(layout.tiles.expert)

    def small(x_TD, weight_Tk, params):
        y_TD, (x_ND, gate_NH, up_NH, *_) = grouped.forward(
            x_TD, weight_Tk, params, layout, implementation
        )
        return y_TD, (x_ND, gate_NH, up_NH)

    def large(x_TD, weight_Tk, params):
        shapes = jax.eval_shape(small, x_TD, weight_Tk, params)[1]
        kept = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return _with_room(x_TD, weight_Tk, params, routing, implementation), kept

    inputs = x_TD, weight_Tk, params
    y_TD, kept = lax.cond(fits, small, large, *inputs)
    return y_TD, (inputs, routing, layout, fits, kept)


def _backward(limit, implementation, saved, grad_TD):
    inputs, routing, layout, fits, kept = saved
    _, weight_Tk, params = inputs

    def small(grad_TD):
        rest = *kept, weight_Tk, params, layout
        return grouped.backward(implementation, rest, grad_TD)[:3]

    def large(grad_TD):
        run = partial(_with_room, routing=routing, implementation=implementation)
        return jax.vjp(run, *inputs)[1](grad_TD)

    return *lax.cond(fits, small, large, grad_TD), None


limited_experts.defvjp(_forward, _backward)


def _with_room(x_TD, weight_Tk, params, routing: Routing, implementation: Implementation):
    layout = grouped.make_layout(routing)
    return grouped.grouped_experts(x_TD, weight_Tk, params, layout, implementation)
