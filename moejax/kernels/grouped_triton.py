"""The grouped products in Triton, for GPUs that are not Hopper: from compute capability 8.0 on.

Letters: N rows in tiles of ROWS with one expert each, K and M the contracted and the resulting
width, E experts. Widths are multiples of LANES; sums are float32, results have the dtype of x.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moejax.kernels.grouped import ROWS
from moejax.kernels.tuning import Blocks


def off_gpu() -> bool:
    """Whether kernels are interpreted where nobody says so."""
    return jax.default_backend() != "gpu"


@partial(jax.jit, static_argnames=("blocks", "transposed", "keep", "interpret"))
def rows_kernel(
    x_NK: jax.Array,
    matrices: tuple[jax.Array, ...],
    expert_P: jax.Array,
    used: jax.Array,
    *,
    blocks: Blocks,
    transposed: bool = False,
    keep: bool = False,
    interpret: bool | None = None,
) -> tuple[jax.Array, ...]:
    """[N, K] times [E, K, M] (`transposed`: [E, M, K]) -> ([N, M],).

    Of two matrices, gate and up, the results are silu(gate) * up and, with `keep`, gate and up.
    Only the first used[0] tiles are written.
    """
    width = matrices[0].shape[1 if transposed else 2]
    columns = math.gcd(width, blocks.columns // len(matrices))
    tiles = x_NK.shape[0] // ROWS, width // columns
    shape = jax.ShapeDtypeStruct((x_NK.shape[0], width), x_NK.dtype)
    return pl.pallas_call(
        partial(_rows, len(matrices), transposed, tiles, columns, blocks),
        grid=(tiles[0] * tiles[1],),
        out_shape=(shape,) * (3 if keep else 1),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=off_gpu() if interpret is None else interpret,
        name="moejax_grouped_" + ("plain" if len(matrices) == 1 else "swiglu"),
    )(used, expert_P, x_NK, *matrices)


def _rows(count: int, transposed: bool, tiles, columns: int, blocks: Blocks, *refs):
    used, expert, x, *refs = refs
    matrices, outs = refs[:count], refs[count:]
    row, column = _place(pl.program_id(0), tiles, blocks.strip)
    depth = math.gcd(x.shape[1], blocks.depth)

    @pl.when(row < used[0])
    def _():
        owner = expert[row]
        rows, across = pl.ds(row * ROWS, ROWS), pl.ds(column * columns, columns)

        def step(index, sums):
            inner = pl.ds(index * depth, depth)
            left = x[rows, inner]
            at = (owner, across, inner) if transposed else (owner, inner, across)
            return tuple(
                total + _dot(left, matrix[at], 1, 1 if transposed else 0)
                for total, matrix in zip(sums, matrices, strict=True)
            )

        zeros = (jnp.zeros((ROWS, columns), jnp.float32),) * count
        sums = lax.fori_loop(0, x.shape[1] // depth, step, zeros)
        if count == 2:
            gate, up = sums
            sums = gate / (1.0 + jnp.exp(-gate)) * up, gate, up
        for out, total in zip(outs, sums, strict=False):
            out[rows, across] = total.astype(out.dtype)


@partial(jax.jit, static_argnames=("blocks", "interpret"))
def weights_kernel(
    x_NK: jax.Array,
    y_NM: jax.Array,
    first_E: jax.Array,
    tiles_E: jax.Array,
    *,
    blocks: Blocks,
    interpret: bool | None = None,
) -> jax.Array:
    """x^T y over the rows of each expert -> [E, K, M]: of `tiles_E[e]` tiles from `first_E[e]`."""
    shape = tiles_E.shape[0], x_NK.shape[1], y_NM.shape[1]
    block = math.gcd(shape[1], ROWS), math.gcd(shape[2], blocks.columns)
    tiles = shape[1] // block[0], shape[2] // block[1]
    return pl.pallas_call(
        partial(_weights, tiles, block, blocks),
        grid=(shape[0] * tiles[0] * tiles[1],),
        out_shape=jax.ShapeDtypeStruct(shape, x_NK.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=off_gpu() if interpret is None else interpret,
        name="moejax_grouped_weights",
    )(first_E, tiles_E, x_NK, y_NM)


def _weights(tiles, block, blocks: Blocks, first, count, x, y, out):
    expert, tile = lax.div(pl.program_id(0), tiles[0] * tiles[1]), pl.program_id(0)
    row, column = _place(lax.rem(tile, tiles[0] * tiles[1]), tiles, blocks.strip)
    start = first[expert] * ROWS
    down, across = pl.ds(row * block[0], block[0]), pl.ds(column * block[1], block[1])

    def step(index, total):
        rows = pl.ds(start + index * blocks.depth, blocks.depth)
        return total + _dot(x[rows, down], y[rows, across], 0, 0)

    steps = count[expert] * (ROWS // blocks.depth)
    total = lax.fori_loop(0, steps, step, jnp.zeros(block, jnp.float32))
    out[expert, down, across] = total.astype(out.dtype)


def _place(index, tiles, strip: int):
    """(Row, column) of a tile: `strip` columns of all rows, then the next columns."""
    before = lax.div(index, tiles[0] * strip) * strip
    wide = jnp.minimum(tiles[1] - before, strip)
    index = index - before * tiles[0]
    return lax.div(index, wide), before + lax.rem(index, wide)


def _dot(left, right, left_axis: int, right_axis: int):
    """The product over an axis of each, in float32."""
    axes = ((left_axis,), (right_axis,)), ((), ())
    return lax.dot_general(left, right, axes, preferred_element_type=jnp.dtype(jnp.float32))
