"""The kernels of copies.py, in Triton. Letters as there, R rows and C columns of a program."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moejax.kernels.copies import swiglu_terms
from moejax.kernels.grouped import ROWS
from moejax.kernels.grouped_triton import off_gpu

# Rows and columns at most that a program holds: of copies, of sums, of gradients.
COPIED, SUMMED, FELT = (8, 1024), (1, 2048), (2, 1024)


def copy_rows(
    x_TD: jax.Array,
    choice_N: jax.Array,
    used: jax.Array,
    top_k: int,
    *,
    interpret: bool | None = None,
) -> jax.Array:
    """The token of every row's choice [N, D]; 0 where the choice is none (T * k)."""
    rows, columns = COPIED[0], math.gcd(x_TD.shape[1], COPIED[1])
    shape = len(choice_N), x_TD.shape[1]
    return pl.pallas_call(
        partial(_copy, top_k, rows, columns),
        grid=(shape[0] // rows, shape[1] // columns),
        out_shape=jax.ShapeDtypeStruct(shape, x_TD.dtype),
        compiler_params=_params(),
        interpret=off_gpu() if interpret is None else interpret,
        name="moejax_rows_copy",
    )(used, choice_N, x_TD)


def _copy(top_k: int, rows: int, columns: int, used, choice, x, out):
    first, column = pl.program_id(0) * rows, pl.program_id(1) * columns

    @pl.when(first < used[0] * ROWS)
    def _():
        at = pl.ds(first, rows)
        token_R = lax.div(choice[at], jnp.int32(top_k))
        out[at, pl.ds(column, columns)] = _load(x, token_R, column, columns)


def sum_rows(
    rows: tuple[jax.Array, ...],
    weight_Tk: jax.Array,
    slot_Tk: jax.Array,
    *,
    interpret: bool | None = None,
) -> jax.Array:
    """The weighted sum of each token's rows, in float32: [T, D] of their dtype."""
    tokens, width = len(slot_Tk), rows[0].shape[1]
    block, columns = SUMMED[0], math.gcd(width, SUMMED[1])
    return pl.pallas_call(
        partial(_sum, block, columns),
        grid=(pl.cdiv(tokens, block), width // columns),
        out_shape=jax.ShapeDtypeStruct((tokens, width), rows[0].dtype),
        compiler_params=_params(),
        interpret=off_gpu() if interpret is None else interpret,
        name="moejax_rows_sum",
    )(slot_Tk, weight_Tk, *rows)


def _sum(rows: int, columns: int, slot, weight, *refs):
    *sources, out = refs
    tokens, top_k = slot.shape
    token_R = pl.program_id(0) * rows + lax.iota(jnp.int32, rows)
    column = pl.program_id(1) * columns
    live_R = token_R < tokens
    total_RC = jnp.zeros((rows, columns), jnp.float32)
    for choice in range(top_k):
        at = token_R, jnp.full((rows,), choice, jnp.int32)
        slot_R = plgpu.load(slot.at[at], mask=live_R, other=sources[0].shape[0])
        weight_R = plgpu.load(weight.at[at], mask=live_R, other=0.0)
        for source in sources:
            values_RC = _load(source, slot_R, column, columns).astype(jnp.float32)
            total_RC += weight_R[:, None] * values_RC
    live_RC = jnp.broadcast_to(live_R[:, None], total_RC.shape)
    at = _grid(token_R, column, columns)
    plgpu.store(out.at[at], total_RC.astype(out.dtype), mask=live_RC)


def swiglu_gradient(
    gate_NH: jax.Array,
    up_NH: jax.Array,
    grad_NH: jax.Array,
    weight_N: jax.Array,
    used: jax.Array,
    *,
    interpret: bool | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """From the gradient of what hidden values times weights give, all in one pass and in place.

    (Gradients of gate and of up, hidden values times weights: [N, H]; gradients of the weights [N],
    float32.)
    """
    rows, columns = FELT[0], math.gcd(gate_NH.shape[1], FELT[1])
    wide = jax.ShapeDtypeStruct(gate_NH.shape, gate_NH.dtype)
    return pl.pallas_call(
        partial(_swiglu_gradient, rows, columns),
        grid=(len(weight_N) // rows,),
        out_shape=(wide, wide, wide, jax.ShapeDtypeStruct(weight_N.shape, jnp.float32)),
        input_output_aliases={2: 0, 3: 1, 4: 2},
        compiler_params=_params(),
        interpret=off_gpu() if interpret is None else interpret,
        name="moejax_rows_swiglu_gradient",
    )(used, weight_N, gate_NH, up_NH, grad_NH)


def _swiglu_gradient(rows: int, columns: int, used, weight, gate, up, grad, *outs):
    first = pl.program_id(0) * rows

    @pl.when(first < used[0] * ROWS)
    def _():
        at = pl.ds(first, rows)
        weight_R = weight[at]

        def step(index, total_R):
            across = pl.ds(index * columns, columns)
            refs = gate, up, grad
            g, u, d = (ref[at, across].astype(jnp.float32) for ref in refs)
            *results, terms_RC = swiglu_terms(g, u, d, weight_R[:, None])
            for out, value in zip(outs, results, strict=False):
                out[at, across] = value.astype(out.dtype)
            return total_R + jnp.sum(terms_RC, axis=1)

        zero_R = jnp.zeros((rows,), jnp.float32)
        outs[3][at] = lax.fori_loop(0, gate.shape[1] // columns, step, zero_R)


def _load(ref, row_R, first, columns: int):
    """[R, C] rows by index, 0 for an index beyond the last row; columns from `first` on."""
    there_R = row_R < ref.shape[0]
    at = _grid(jnp.where(there_R, row_R, 0), first, columns)
    mask_RC = jnp.broadcast_to(there_R[:, None], at[0].shape)
    return plgpu.load(ref.at[at], mask=mask_RC, other=0)


def _grid(row_R, first, columns: int):
    """Row and column of every element, each [R, C]."""
    shape = len(row_R), columns
    column_RC = first + lax.broadcasted_iota(jnp.int32, shape, 1)
    return jnp.broadcast_to(row_R[:, None], shape), column_RC


def _params():
    return plgpu.CompilerParams(num_warps=4, num_stages=1)
