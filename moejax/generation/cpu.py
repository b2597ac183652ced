"""Regions of a model as a CPU without gradients computes them faster.

XLA's matmul on a CPU packs the matrix first, which for a few rows costs more than the arithmetic;
and attention over a whole prompt computes the half of the scores that the causal mask hides.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from moejax.layers.attention import attention
from moejax.layers.linear import activate

# Rows of x for which adding up the matrix row by row beats packing it (one row isn't packed).
FEW_ROWS = range(2, 13)
# Rows of the matrix added in one step: with fewer the loop costs, with more the registers run out.
STEP = 8
# Columns added up at a time at most, so that the sums stay in the first-level cache.
WIDEST = 1024
# Queries of a block of causal attention.
BLOCK = 128


def few_rows_linear(
    x: jax.Array, kernel_IO: jax.Array, bias_O: jax.Array | None = None, *, activation=None
) -> jax.Array | None:
    """`moejax.linear` for a few rows of float32: [..., I] -> [..., O]; else None."""
    num_inputs, num_outputs = kernel_IO.shape
    rows = math.prod(x.shape[:-1])
    if rows not in FEW_ROWS or num_inputs % STEP or kernel_IO.dtype != jnp.float32:
        return None
    width = _divisor(num_outputs, WIDEST)
    x_RI = x.reshape(rows, num_inputs)

    def columns(index, y_RO):
        def step(i, sums_RW):
            x_RS = lax.dynamic_slice_in_dim(x_RI, i * STEP, STEP, 1)
            part_SW = lax.dynamic_slice(kernel_IO, (i * STEP, index * width), (STEP, width))
            for row in range(STEP):
                sums_RW = sums_RW + x_RS[:, row, None] * part_SW[row][None]
            return sums_RW

        zero = jnp.zeros((rows, width), x.dtype)
        sums_RW = lax.fori_loop(0, num_inputs // STEP, step, zero)
        return lax.dynamic_update_slice(y_RO, sums_RW, (0, index * width))

    y_RO = jnp.zeros((rows, num_outputs), x.dtype)
    y_RO = lax.fori_loop(0, num_outputs // width, columns, y_RO)
    if bias_O is not None:
        y_RO = y_RO + bias_O[None]
    return activate(y_RO, activation).reshape(*x.shape[:-1], num_outputs)


def blocked_attention(
    q_BNSH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTV: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    *,
    scale: float,
    causal: bool = False,
) -> jax.Array | None:
    """`moejax.attention` over long causal spans: each block of queries with the keys up to it."""
    steps, keys = q_BNSH.shape[2], k_BMTH.shape[2]
    if not causal or steps != keys or steps <= BLOCK or bias is not None:
        return None
    parts = []
    for start in range(0, steps, BLOCK):
        end = min(start + BLOCK, steps)
        seen = mask
        if mask is not None:
            seen = mask[..., :end] if mask.shape[2] == 1 else mask[..., start:end, :end]
        part = attention(
            q_BNSH[:, :, start:end],
            k_BMTH[:, :, :end],
            v_BMTV[:, :, :end],
            seen,
            scale=scale,
            causal=True,
        )
        parts.append(part)
    return jnp.concatenate(parts, axis=2)


def _divisor(number: int, largest: int) -> int:
    """The largest divisor of a number up to a bound."""
    return next(size for size in range(min(largest, number), 0, -1) if number % size == 0)


KERNELS = {"moejax.linear": few_rows_linear, "moejax.attention": blocked_attention}
