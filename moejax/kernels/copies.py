"""Tokens to tiled rows and back, and SwiGLU's gradient on rows: passes that memory bounds.

Each has a Triton kernel, used with either kind of grouped products, and a plain twin ("xla"). The
kernels leave out tiles without owner, whose rows then hold anything. Letters: T tokens with k
choices, N rows, D and H widths; `choice` [N] is the choice (t * k + j) of a row, T * k where there
is none; `slot` [T, k] the row of a choice, N where there is none.
"""

import importlib
from functools import cache

import jax
import jax.numpy as jnp

from moejax.kernels.grouped import Implementation, Tiles


def copy_rows(
    x_TD: jax.Array, choice_N: jax.Array, tiles: Tiles, top_k: int, implementation: Implementation
) -> jax.Array:
    """The token of every row [N, D], 0 without one."""
    kernels = _kernels(implementation)
    if kernels:
        return kernels.copy_rows(x_TD, choice_N, tiles.used, top_k)
    return x_TD.at[choice_N // top_k].get(mode="fill", fill_value=0)


def sum_rows(
    rows: tuple[jax.Array, ...],
    weight_Tk: jax.Array,
    slot_Tk: jax.Array,
    implementation: Implementation,
) -> jax.Array:
    """The weighted sum of each token's rows, all of them [N, D], in float32: [T, D] of their
    dtype.
    """
    kernels = _kernels(implementation)
    if kernels:
        return kernels.sum_rows(rows, weight_Tk, slot_Tk)
    taken = (y_ND.at[slot_Tk].get(mode="fill", fill_value=0).astype(jnp.float32) for y_ND in rows)
    total_TD = sum(jnp.sum(y_TkD * weight_Tk[:, :, None], axis=1) for y_TkD in taken)
    return jnp.asarray(total_TD).astype(rows[0].dtype)


def swiglu_gradient(
    gate_NH: jax.Array,
    up_NH: jax.Array,
    grad_NH: jax.Array,
    weight_N: jax.Array,
    tiles: Tiles,
    implementation: Implementation,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`grad`: the gradient of each row's hidden values times its weight -> (gradients of gate and
    of up, hidden values times weight, all [N, H]; gradients of the weights, float32 [N]).
    """
    kernels = _kernels(implementation)
    if kernels:
        return kernels.swiglu_gradient(gate_NH, up_NH, grad_NH, weight_N, tiles.used)
    gate, up, grad = (leaf.astype(jnp.float32) for leaf in (gate_NH, up_NH, grad_NH))
    d_gate, d_up, hidden, terms_NH = swiglu_terms(gate, up, grad, weight_N[:, None])
    d_gate, d_up, hidden = (leaf.astype(gate_NH.dtype) for leaf in (d_gate, d_up, hidden))
    return d_gate, d_up, hidden, jnp.sum(terms_NH, axis=1)


def swiglu_terms(gate, up, grad, weight):
    """Float32: (gradients of gate and of up, weighted hidden values, terms of the weight's)."""
    sigmoid = 1.0 / (1.0 + jnp.exp(-gate))
    silu = gate * sigmoid
    hidden = silu * up
    weighted = grad * weight
    slope = sigmoid + silu * (1.0 - sigmoid)
    return weighted * up * slope, weighted * silu, hidden * weight, hidden * grad


@cache
def _kernels(implementation: Implementation):
    """The module of the kernels; None for the plain twins, and where JAX has no Triton any more."""
    if implementation == "xla":
        return None
    try:
        return importlib.import_module("moejax.kernels.copies_triton")
    except ImportError:
        return None
