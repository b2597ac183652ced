"""SwiGLU experts on rows sorted by expert, as grouped products, with the gradient by hand.

Neither pass scatters rows. The forward pass of a gradient keeps the rows, and gate and up of each
before the activation, in the dtype of the tokens: (D + 2 F) numbers a row. The backward pass
recomputes the hidden values. It needs no outputs of experts: the gradient of a weight is the
product of hidden values with their gradient, and the weights multiply the hidden values, which are
narrower, on the way to the gradient of "down". Letters as in permute.py.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from moejax.kernels.copies import copy_rows, sum_rows, swiglu_gradient
from moejax.kernels.grouped import (
    ROWS,
    Implementation,
    Tiles,
    make_tiles,
    rows_product,
    rows_swiglu,
    weights_product,
)
from moejax.moe.assignment import Routing
from moejax.moe.experts import Params
from moejax.moe.permute import Slots, tiled_slots


@partial(jax.tree_util.register_dataclass, data_fields=["slots", "tiles"], meta_fields=[])
@dataclass(frozen=True)
class Layout:
    """The slots of the choices, and the tiles that slots come in."""

    slots: Slots
    tiles: Tiles


def make_layout(routing: Routing, limit: int | None = None) -> Layout:
    """Each expert's rows in whole tiles, experts in order, with room for `limit` choices or all."""
    slots, tiles_E = tiled_slots(routing, ROWS, limit)
    return Layout(slots, make_tiles(tiles_E, len(slots.choice)))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def grouped_experts(
    x_TD: jax.Array,
    weight_Tk: jax.Array,
    params: Params,
    layout: Layout,
    implementation: Implementation,
) -> jax.Array:
    """Weighted sum of the outputs of each token's experts, in float32: [T, D] of the dtype of x."""
    x_ND = _rows(x_TD, layout, implementation)
    (hidden_NH,) = rows_swiglu(
        x_ND, params["gate"], params["up"], layout.tiles, implementation=implementation
    )
    return _outputs(hidden_NH, weight_Tk, params, layout, implementation)


def forward(x_TD, weight_Tk, params, layout: Layout, implementation: Implementation):
    """`grouped_experts`, and what its gradient needs."""
    x_ND = _rows(x_TD, layout, implementation)
    hidden_NH, gate_NH, up_NH = rows_swiglu(
        x_ND, params["gate"], params["up"], layout.tiles, keep=True, implementation=implementation
    )
    y_TD = _outputs(hidden_NH, weight_Tk, params, layout, implementation)
    return y_TD, (x_ND, gate_NH, up_NH, weight_Tk, params, layout)


def backward(implementation: Implementation, saved, grad_TD):
    """Gradients of tokens, weights and parameters from what `forward` saved; none of the layout."""
    x_ND, gate_NH, up_NH, weight_Tk, params, layout = saved
    slots, tiles = layout.slots, layout.tiles
    rows = partial(rows_product, tiles=tiles, implementation=implementation)
    weights = partial(weights_product, tiles=tiles, implementation=implementation)
    grad_ND = _rows(grad_TD.astype(x_ND.dtype), layout, implementation)
    weight_N = weight_Tk.reshape(-1).at[slots.choice].get(mode="fill", fill_value=0)
    grad_hidden_NH = rows(grad_ND, params["down"], transposed=True)
    # three results take the places of the three operands
    grad_gate_NH, grad_up_NH, hidden_NH, grad_weight_N = swiglu_gradient(
        gate_NH, up_NH, grad_hidden_NH, weight_N, tiles, implementation
    )
    grad_down = weights(hidden_NH, grad_ND)
    # the gradients of the outputs are gone before those of the rows come
    grad_down, grad_gate_NH, grad_up_NH = lax.optimization_barrier(
        (grad_down, grad_gate_NH, grad_up_NH)
    )
    grad_gate, grad_up = weights(x_ND, grad_gate_NH), weights(x_ND, grad_up_NH)
    by_gate_ND = rows(grad_gate_NH, params["gate"], transposed=True)
    by_up_ND = rows(grad_up_NH, params["up"], transposed=True)
    ones_Tk = jnp.ones_like(weight_Tk)
    grad_x_TD = sum_rows((by_gate_ND, by_up_ND), ones_Tk, slots.slot, implementation)
    grad_weight_Tk = grad_weight_N.at[slots.slot].get(mode="fill", fill_value=0)
    grad_params = {"gate": grad_gate, "up": grad_up, "down": grad_down}
    return grad_x_TD, grad_weight_Tk, grad_params, None


grouped_experts.defvjp(forward, backward)


def _rows(x_TD, layout: Layout, implementation: Implementation) -> jax.Array:
    slots = layout.slots
    return copy_rows(x_TD, slots.choice, layout.tiles, slots.slot.shape[1], implementation)


def _outputs(hidden_NH, weight_Tk, params, layout: Layout, implementation) -> jax.Array:
    y_ND = rows_product(hidden_NH, params["down"], layout.tiles, implementation=implementation)
    return sum_rows((y_ND,), weight_Tk, layout.slots.slot, implementation)
