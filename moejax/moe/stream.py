"""One expert on a few rows, straight from the stacked weights: for decoding on a CPU.

A matmul with a matrix picked from a stack first copies the matrix, and then packs it; for a few
rows both cost more than the arithmetic. Here a loop adds up a few rows of the matrix at a time, so
its weights go through the processor once. The loop runs on one core.
"""

import jax
import jax.numpy as jnp
from jax import lax

from moejax.moe.experts import Params, combine_activations, narrow

# Rows of a matrix added in one step: with fewer the loop costs, with more the registers run out.
STEP = 8


def can_stream(params: Params) -> bool:
    """Whether the matrices have a number of rows that fits the steps."""
    return params["down"].shape[1] % STEP == 0 and params["down"].shape[2] % STEP == 0


def stream_mlp(x_BD: jax.Array, params: Params, index: jax.Array) -> jax.Array:
    """Expert `index` of the stack on [B, D] for small B: float32 [B, D]."""
    names = [name for name in ("gate", "up") if name in params]
    hidden = combine_activations(_project(x_BD, params, names, index))
    return _project(narrow(hidden, x_BD.dtype), params, ["down"], index)[0]


def _project(x_BI: jax.Array, params: Params, names: list[str], index) -> tuple[jax.Array, ...]:
    """x @ kernel + bias in float32 for kernels of the same shape, read together."""
    num_rows, num_inputs = x_BI.shape
    x_BI = x_BI.astype(jnp.float32)

    def step(i, sums):
        x_BR = lax.dynamic_slice_in_dim(x_BI, i * STEP, STEP, 1)
        return tuple(
            _add_rows(total, x_BR, params[name], index, i * STEP)
            for name, total in zip(names, sums, strict=True)
        )

    zero = jnp.zeros((num_rows, params[names[0]].shape[-1]), jnp.float32)
    sums = lax.fori_loop(0, num_inputs // STEP, step, (zero,) * len(names))
    biases = (params.get(f"{name}_bias") for name in names)
    return tuple(
        total if bias is None else total + bias[index][None].astype(jnp.float32)
        for total, bias in zip(sums, biases, strict=True)
    )


def _add_rows(total_BO, x_BR, kernel_EIO, index, first):
    shape = (1, x_BR.shape[1], kernel_EIO.shape[-1])
    rows_RO = lax.dynamic_slice(kernel_EIO, (index, first, 0), shape)[0].astype(jnp.float32)
    for row in range(x_BR.shape[1]):
        total_BO = total_BO + x_BR[:, row, None] * rows_RO[row][None]
    return total_BO
