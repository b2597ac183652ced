"""Rows times the matrix of their expert, on Hopper's tensor cores.

Letters: N rows in tiles of one expert each, P tiles, K and M the contracted and the resulting
width, E experts.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from moejax.kernels import hopper
from moejax.kernels.grouped import ROWS
from moejax.kernels.hopper import DEPTH, HALF
from moejax.kernels.tuning import Blocks


@partial(jax.jit, static_argnames=("blocks", "transposed", "keep"))
def rows_kernel(
    x_NK: jax.Array,
    matrices: tuple[jax.Array, ...],
    expert_P: jax.Array,
    used: jax.Array,
    *,
    blocks: Blocks,
    transposed: bool = False,
    keep: bool = False,
) -> tuple[jax.Array, ...]:
    """[N, K] times [E, K, M] (`transposed`: [E, M, K]) -> ([N, M],).

    Of two matrices, gate and up, the results are silu(gate) * up and, with `keep`, gate and up.
    Only the first used[0] tiles are written. Sums are float32, results have the dtype of x.
    """
    kind = "plain" if len(matrices) == 1 else "swiglu"
    width = matrices[0].shape[1 if transposed else 2]
    shape = jax.ShapeDtypeStruct((x_NK.shape[0], width), x_NK.dtype)
    kernel = hopper.launch(
        f"moejax_grouped_{kind}",
        partial(_program, len(matrices), transposed, blocks),
        (shape,) * (3 if keep else 1),
    )
    return kernel(used, expert_P, x_NK, *matrices)


def _program(count: int, transposed: bool, blocks: Blocks, used, expert, x, *refs):
    matrices, out = refs[:count], refs[count:]
    columns = blocks.columns // count
    column_tiles = pl.cdiv(out[0].shape[1], columns)
    tile = (columns, DEPTH) if transposed else (DEPTH, columns)

    def pipeline(row, column, body, context):
        at = (lambda k: (column, k)) if transposed else (lambda k: (k, column))
        matrix = hopper.operand(tile, at, x.dtype)
        return hopper.pipeline(
            body,
            grid=(pl.cdiv(x.shape[1], DEPTH),),
            in_specs=[hopper.operand((ROWS, DEPTH), lambda k: (row, k), x.dtype)]
            + [matrix] * count,
            max_concurrent_steps=blocks.stages,
            compute_context=context,
        )

    def nothing(*_):
        pass

    @partial(
        pl.run_scoped,
        buffers=pipeline(0, 0, nothing, nothing).get_allocations(x, *(m.at[0] for m in matrices)),
        staged=hopper.staging(x.dtype),
        drained=hopper.drained(),
        collective_axes="group",
    )
    def _(buffers, staged, drained):
        group = lax.axis_index("group")
        row_tiles = used[0]

        def multiply(_, rows, *operands):
            *factors, sums = operands
            for factor, total in zip(factors, sums, strict=True):
                factor = factor.transpose((1, 0)) if transposed else factor
                plgpu.wgmma(total, rows.at[pl.ds(group * HALF, HALF)], factor)
            plgpu.wgmma_wait(count)
            return sums

        @plgpu.nd_loop((row_tiles * column_tiles,), collective_axes="program")
        def _(info):
            shape = row_tiles, column_tiles
            row, column = plgpu.planar_snake(info.index[0], shape, 1, blocks.strip)

            def context(run):
                @partial(pl.run_scoped, sums=(hopper.sums(columns),) * count)
                def _(sums):
                    run(sums)
                    values = _finish([total[...] for total in sums])
                    plgpu.barrier_arrive(drained)
                    pairs = list(zip(values, out, strict=False))
                    first = row * ROWS + group * HALF
                    hopper.store(pairs, first, column * columns, staged.at[group])

            run = pipeline(row, column, multiply, context)
            run(x, *(matrix.at[expert[row]] for matrix in matrices), allocations=buffers)
            hopper.await_drained(drained)

    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _finish(sums):
    if len(sums) == 1:
        return sums
    gate, up = sums
    return gate / (1.0 + jnp.exp(-gate)) * up, gate, up
