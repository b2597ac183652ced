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
    """Weighted sum of the outputs of each token's experts, float32 [T, D]."""
    x_ND = _token_rows(x_TD, layout.slots)
    (hidden_NH,) = rows_swiglu(
        x_ND, params["gate"], params["up"], layout.tiles, implementation=implementation
    )
    return _outputs(hidden_NH, weight_Tk, params, layout, implementation)


def forward(x_TD, weight_Tk, params, layout: Layout, implementation: Implementation):
    """`grouped_experts`, and what its gradient needs."""
    x_ND = _token_rows(x_TD, layout.slots)
    hidden_NH, gate_NH, up_NH = rows_swiglu(
        x_ND, params["gate"], params["up"], layout.tiles, keep=True, implementation=implementation
    )
    y_TD = _outputs(hidden_NH, weight_Tk, params, layout, implementation)
    return y_TD, (x_ND, gate_NH, up_NH, weight_Tk, params, layout)


def backward(implementation: Implementation, saved, grad_TD):
    """Gradients of tokens, weights and parameters from what `forward` saved; none of the layout."""
    x_ND, gate_NH, up_NH, weight_Tk, params, layout = saved
    rows = partial(rows_product, tiles=layout.tiles, implementation=implementation)
    weights = partial(weights_product, tiles=layout.tiles, implementation=implementation)
    grad_ND = _token_rows(grad_TD.astype(x_ND.dtype), layout.slots)
    weight_N = weight_Tk.reshape(-1).at[layout.slots.choice].get(mode="fill", fill_value=0)
    grad_down = weights(_weighted_hidden(gate_NH, up_NH, weight_N), grad_ND)
    # the hidden values are gone before their gradient comes
    grad_down, grad_ND = lax.optimization_barrier((grad_down, grad_ND))
    grad_hidden_NH = rows(grad_ND, params["down"], transposed=True)
    grad_gate_NH, grad_up_NH, grad_weight_N = _swiglu_gradient(
        gate_NH, up_NH, grad_hidden_NH, weight_N
    )
    grad_gate, grad_up = weights(x_ND, grad_gate_NH), weights(x_ND, grad_up_NH)
    by_gate_ND = rows(grad_gate_NH, params["gate"], transposed=True)
    by_up_ND = rows(grad_up_NH, params["up"], transposed=True)
    ones_Tk = jnp.ones_like(weight_Tk)
    grad_x_TD = _sum_choices(by_gate_ND, ones_Tk, layout.slots)
    grad_x_TD += _sum_choices(by_up_ND, ones_Tk, layout.slots)
    grad_weight_Tk = grad_weight_N.at[layout.slots.slot].get(mode="fill", fill_value=0)
    grad_params = {"gate": grad_gate, "up": grad_up, "down": grad_down}
    return grad_x_TD.astype(x_ND.dtype), grad_weight_Tk, grad_params, None


grouped_experts.defvjp(forward, backward)


def _outputs(hidden_NH, weight_Tk, params, layout: Layout, implementation) -> jax.Array:
    y_ND = rows_product(hidden_NH, params["down"], layout.tiles, implementation=implementation)
    return _sum_choices(y_ND, weight_Tk, layout.slots)


def _weighted_hidden(gate_NH, up_NH, weight_N):
    gate_NH, up_NH, dtype = gate_NH.astype(jnp.float32), up_NH.astype(jnp.float32), gate_NH.dtype
    return (jax.nn.silu(gate_NH) * up_NH * weight_N[:, None]).astype(dtype)


def _swiglu_gradient(gate_NH, up_NH, grad_NH, weight_N):
    """Gradients of gate and up, and of the weight of each row, from that of the hidden values."""
    dtype = gate_NH.dtype
    gate_NH, up_NH, grad_NH = (leaf.astype(jnp.float32) for leaf in (gate_NH, up_NH, grad_NH))
    sigmoid_NH = jax.nn.sigmoid(gate_NH)
    silu_NH = gate_NH * sigmoid_NH
    grad_weight_N = jnp.sum(silu_NH * up_NH * grad_NH, axis=1)
    grad_NH = grad_NH * weight_N[:, None]
    slope_NH = sigmoid_NH + silu_NH * (1.0 - sigmoid_NH)
    return (
        (grad_NH * up_NH * slope_NH).astype(dtype),
        (grad_NH * silu_NH).astype(dtype),
        grad_weight_N,
    )


def _token_rows(x_TD: jax.Array, slots: Slots) -> jax.Array:
    """The token of every slot, 0 in an empty one; two numbers of 16 bits are moved as one of 32."""
    token_N = slots.choice // slots.slot.shape[1]
    num_tokens, width = x_TD.shape
    if x_TD.dtype.itemsize != 2 or width % 2:
        return x_TD.at[token_N].get(mode="fill", fill_value=0)
    pairs = lax.bitcast_convert_type(x_TD.reshape(num_tokens, width // 2, 2), jnp.uint32)
    pairs = pairs.at[token_N].get(mode="fill", fill_value=0)
    return lax.bitcast_convert_type(pairs, x_TD.dtype).reshape(-1, width)


def _sum_choices(y_ND: jax.Array, weight_Tk: jax.Array, slots: Slots) -> jax.Array:
    """Weighted sum of a token's slots in float32: [N, D], [T, k] -> [T, D]."""
    y_TkD = y_ND.at[slots.slot].get(mode="fill", fill_value=0).astype(jnp.float32)
    return jnp.sum(y_TkD * weight_Tk[:, :, None], axis=1)
