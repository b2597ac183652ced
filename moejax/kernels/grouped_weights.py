"""The gradients of experts' matrices from the rows of each, on Hopper's tensor cores.

Letters: N rows in tiles of one expert each, K and M the widths of the two factors, E experts.
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

STEPS = ROWS // DEPTH


@partial(jax.jit, static_argnames=("blocks",))
def weights_kernel(
    x_NK: jax.Array, y_NM: jax.Array, first_E: jax.Array, tiles_E: jax.Array, *, blocks: Blocks
) -> jax.Array:
    """x^T y over the rows of each expert -> [E, K, M] in the dtype of x, summed in float32.

    The rows of expert e are `tiles_E[e]` tiles, at least one, from tile `first_E[e]` on.
    """
    shape = tiles_E.shape[0], x_NK.shape[1], y_NM.shape[1]
    out = jax.ShapeDtypeStruct(shape, x_NK.dtype)
    kernel = hopper.launch("moejax_grouped_weights", partial(_program, blocks), (out,))
    return kernel(first_E, tiles_E, x_NK, y_NM)[0]


def _program(blocks: Blocks, first, tiles, x, y, out):
    experts, height, width = out.shape
    shape = pl.cdiv(height, ROWS), pl.cdiv(width, blocks.columns)

    def pipeline(start, steps, row, column, body, context):
        return hopper.pipeline(
            body,
            grid=(steps,),
            in_specs=[
                hopper.operand((DEPTH, ROWS), lambda k: (start + k, row), x.dtype),
                hopper.operand((DEPTH, blocks.columns), lambda k: (start + k, column), x.dtype),
            ],
            max_concurrent_steps=blocks.stages,
            compute_context=context,
        )

    def nothing(*_):
        pass

    @partial(
        pl.run_scoped,
        buffers=pipeline(0, jnp.int32(blocks.stages), 0, 0, nothing, nothing).get_allocations(x, y),
        staged=hopper.staging(x.dtype),
        drained=hopper.drained(),
        collective_axes="group",
    )
    def _(buffers, staged, drained):
        group = lax.axis_index("group")

        def multiply(_, left, right, total):
            half = left.at[:, pl.ds(group * HALF, HALF)]
            plgpu.wgmma(total, half.transpose((1, 0)), right)
            plgpu.wgmma_wait(1)
            return total

        @plgpu.nd_loop((experts, shape[0] * shape[1]), collective_axes="program")
        def _(info):
            expert, tile = info.index
            row, column = plgpu.planar_snake(tile, shape, 1, blocks.strip)

            def context(run):
                @partial(pl.run_scoped, total=hopper.sums(blocks.columns))
                def _(total):
                    run(total)
                    pairs = [(total[...], out.at[expert])]
                    plgpu.barrier_arrive(drained)
                    at = row * ROWS + group * HALF, column * blocks.columns
                    hopper.store(pairs, *at, staged.at[group])

            start, steps = first[expert] * STEPS, tiles[expert] * STEPS
            run = pipeline(start, steps, row, column, multiply, context)
            run(x, y, allocations=buffers)
            hopper.await_drained(drained)

    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
