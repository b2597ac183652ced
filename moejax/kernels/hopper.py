"""What the grouped products on Hopper share: sizes of tiles, their layout in shared memory, stores.

A tile of the result has ROWS rows; of three warpgroups two multiply half of them each, the third
loads. As many programs as the chip has multiprocessors go over the tiles, whose number is known
only on the device.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from moejax.kernels.grouped import LANES, ROWS

HALF = ROWS // 2
# What a step contracts, and the registers of a thread that loads.
DEPTH = 64
LOADER_REGISTERS = 40


def transforms(dtype):
    """The layout that loads, products and stores of LANES columns agree on."""
    size = jnp.dtype(dtype).itemsize
    tiling, swizzle = plgpu.TilingTransform, plgpu.SwizzleTransform
    return (tiling((8, LANES)), swizzle(LANES * size))  # pyright: ignore[reportAbstractUsage]


def operand(shape, index_map, dtype):
    """A tile of an operand: by step of the pipeline."""
    return plgpu.BlockSpec(
        shape,
        index_map,
        transforms=transforms(dtype),
        memory_space=plgpu.SMEM,
        delay_release=1,
    )


def sums(columns: int):
    """Registers for a warpgroup's half of a tile of the result, float32, zero at first."""
    return plgpu.ACC((HALF, columns), jnp.float32)  # pyright: ignore[reportPrivateImportUsage]


def staging(dtype):
    """Shared memory for `store`: two buffers for each of the two warpgroups."""
    return plgpu.SMEM((2, 2, HALF, LANES), dtype, transforms=transforms(dtype))


def drained():
    """A barrier at which both multiplying warpgroups arrive when they have read their last step."""
    return plgpu.Barrier(num_arrivals=2)


def await_drained(barrier):
    """The loading warpgroup waits for the others, between two tiles that use the same buffers.

    The pipeline itself waits for all steps but the last one, whose release is delayed.
    """

    @pl.when(lax.axis_index("group") == 2)
    def _():
        plgpu.barrier_wait(barrier)


def launch(name: str, body, out_type):
    """A kernel of programs (axis "program") of three warpgroups (axis "group").

    There is one for each multiprocessor, which goes over tiles; one alone where none is counted.
    """
    device = jax.devices()[0]
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=(device.core_count if device.platform == "gpu" else 1,),
        grid_names=("program",),
        num_threads=3,
        thread_name="group",
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )


pipeline = partial(
    plgpu.emit_pipeline_warp_specialized,
    memory_registers=LOADER_REGISTERS,
    wg_axis="group",
    num_compute_wgs=2,
)


def store(pairs, first_row, first_column, staged):
    """Write (values [HALF, columns], ref [rows, width]) by way of two buffers in turn."""
    slot = 0
    for values, ref in pairs:
        for at in range(0, values.shape[1], LANES):
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            staged[slot] = values[:, at : at + LANES].astype(ref.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(
                staged.at[slot],
                ref.at[pl.ds(first_row, HALF), pl.ds(first_column + at, LANES)],
            )
            slot = 1 - slot
