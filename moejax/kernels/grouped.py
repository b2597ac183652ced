"""Products of rows sorted by expert with the experts' matrices: forward and both gradients.

Each has a kernel for Hopper GPUs (implementation "mosaic", Pallas' Mosaic GPU backend, which JAX
calls experimental), one for other NVIDIA GPUs ("triton", Pallas' Triton backend) and a plain twin
("xla", `lax.ragged_dot`) with the same signature. Sums are float32, results have the dtype of the
rows. Rows come in tiles of ROWS with one expert each. MOEJAX_KERNELS=triton takes those on Hopper.
Letters: N rows, P tiles, K and M the contracted and the resulting width, E experts.
"""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from moejax.checks import require_choice
from moejax.kernels.tuning import Blocks, Key, Product, lookup

Implementation = Literal["xla", "mosaic", "triton"]
# Rows of a tile; what every width must be a multiple of for the kernels.
ROWS = 128
LANES = 64
HOPPER, OLDEST = (9, 0), (8, 0)


@partial(jax.tree_util.register_dataclass, data_fields=["expert", "first", "count"], meta_fields=[])
@dataclass(frozen=True)
class Tiles:
    """Which expert owns a tile, all int32: the expert of each [P], the first tile of each expert
    [E] and how many follow, at least one [E]. Tiles beyond the last expert's have no owner: what
    products hold there is not defined.
    """

    expert: jax.Array
    first: jax.Array
    count: jax.Array

    @property
    def used(self) -> jax.Array:
        """[1] tiles that have an owner."""
        return jnp.sum(self.count, dtype=jnp.int32)[None]


def make_tiles(tiles_E: jax.Array, num_rows: int) -> Tiles:
    """Tiles of so many rows from how many each expert has."""
    end_E = jnp.cumsum(tiles_E, dtype=jnp.int32)
    tile_P1 = jnp.arange(num_rows // ROWS, dtype=jnp.int32)[:, None]
    expert_P = jnp.sum(end_E[None, :] <= tile_P1, axis=1, dtype=jnp.int32)
    return Tiles(jnp.minimum(expert_P, len(tiles_E) - 1), end_E - tiles_E, tiles_E)


def why_not(x_TD: jax.Array, params: Mapping[str, jax.Array]) -> str | None:
    """Why the kernels cannot serve these tokens and experts, as the end of a sentence, or None."""
    if set(params) != {"gate", "up", "down"}:
        return "is for SwiGLU experts without bias"
    if {x_TD.dtype, *(leaf.dtype for leaf in params.values())} != {jnp.dtype(jnp.bfloat16)}:
        return f"is for bfloat16 tokens and parameters; the tokens are {x_TD.dtype}"
    if not kernels_here():
        device = jax.devices()[0]
        return (
            f"is for NVIDIA GPUs of compute capability {OLDEST[0]}.{OLDEST[1]} or later, not"
            f" {device.device_kind}"
        )
    return None


def kernels_here() -> Implementation | None:
    """The kernels for the GPU at hand, or None. ValueError for an unknown MOEJAX_KERNELS."""
    wanted = os.environ.get("MOEJAX_KERNELS") or "auto"
    require_choice("MOEJAX_KERNELS", wanted, ("auto", "mosaic", "triton"))
    capability = _capability(jax.devices()[0])
    if capability == HOPPER and wanted != "triton" and _importable("mosaic_gpu"):
        return "mosaic"
    if capability >= OLDEST and wanted != "mosaic" and _importable("triton"):
        return "triton"
    return None


def _capability(device: Any) -> tuple[int, ...]:
    """() for what is no NVIDIA GPU."""
    numbers = str(getattr(device, "compute_capability", "")).split(".")
    if device.platform != "gpu" or not all(number.isdecimal() for number in numbers):
        return ()
    return tuple(int(number) for number in numbers)


def _importable(backend: str) -> bool:
    try:
        importlib.import_module(f"jax.experimental.pallas.{backend}")
    except ImportError:
        return False
    return True


def rows_product(
    x_NK: jax.Array,
    matrix_EKM: jax.Array,
    tiles: Tiles,
    *,
    transposed: bool = False,
    implementation: Implementation,
) -> jax.Array:
    """Each row times its expert's matrix: [N, K] -> [N, M]. `transposed`: the matrices are
    [E, M, K].
    """
    _check(tiles, implementation, x_NK, matrix_EKM)
    if implementation == "xla":
        return _rows_float32(x_NK, matrix_EKM, tiles, transposed).astype(x_NK.dtype)
    product, width = ("transposed", 1) if transposed else ("plain", 2)
    return rows_kernel_of(implementation)(
        x_NK,
        (matrix_EKM,),
        tiles.expert,
        tiles.used,
        blocks=_blocks(implementation, product, x_NK, matrix_EKM.shape[width], tiles),
        transposed=transposed,
    )[0]


def rows_swiglu(
    x_NK: jax.Array,
    gate_EKM: jax.Array,
    up_EKM: jax.Array,
    tiles: Tiles,
    *,
    keep: bool = False,
    implementation: Implementation,
) -> tuple[jax.Array, ...]:
    """silu(x gate) * (x up) of each row [N, M]; with `keep`, then the two products themselves."""
    _check(tiles, implementation, x_NK, gate_EKM, up_EKM)
    if implementation != "xla":
        blocks = _blocks(implementation, "swiglu", x_NK, gate_EKM.shape[2], tiles)
        matrices = gate_EKM, up_EKM
        return rows_kernel_of(implementation)(
            x_NK, matrices, tiles.expert, tiles.used, blocks=blocks, keep=keep
        )
    gate_NM, up_NM = (_rows_float32(x_NK, leaf, tiles) for leaf in (gate_EKM, up_EKM))
    results = jax.nn.silu(gate_NM) * up_NM, gate_NM, up_NM
    return tuple(leaf.astype(x_NK.dtype) for leaf in results[: 3 if keep else 1])


def weights_product(
    x_NK: jax.Array, y_NM: jax.Array, tiles: Tiles, *, implementation: Implementation
) -> jax.Array:
    """x^T y over the rows of each expert: the gradient of its matrix [E, K, M]."""
    _check(tiles, implementation, x_NK, y_NM)
    if implementation != "xla":
        blocks = _blocks(implementation, "weights", x_NK, y_NM.shape[1], tiles)
        return weights_kernel_of(implementation)(
            x_NK, y_NM, tiles.first, tiles.count, blocks=blocks
        )
    numbers = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return lax.ragged_dot_general(
        x_NK,
        y_NM,
        tiles.count * ROWS,
        numbers,
        preferred_element_type=jnp.dtype(jnp.float32),
    ).astype(x_NK.dtype)


def _blocks(implementation, product: Product, x_NK, width: int, tiles: Tiles) -> Blocks:
    key = Key(
        kernels=implementation,
        product=product,
        contracted=x_NK.shape[1],
        width=width,
        experts=len(tiles.count),
    )
    return lookup(key)


def rows_kernel_of(implementation: Implementation):
    if implementation == "mosaic":
        from moejax.kernels.grouped_rows import rows_kernel
    else:
        from moejax.kernels.grouped_triton import rows_kernel
    return rows_kernel


def weights_kernel_of(implementation: Implementation):
    if implementation == "mosaic":
        from moejax.kernels.grouped_weights import weights_kernel
    else:
        from moejax.kernels.grouped_triton import weights_kernel
    return weights_kernel


def _check(tiles: Tiles, implementation: Implementation, x_NK: jax.Array, *others: jax.Array):
    """ValueError for what the kernels would get wrong."""
    if len(x_NK) != len(tiles.expert) * ROWS:
        raise ValueError(
            f"{len(x_NK)} rows do not fill {len(tiles.expert)} tiles of {ROWS} exactly"
        )
    for leaf in others:
        first = len(x_NK) if leaf.ndim == 2 else len(tiles.count)
        if len(leaf) != first:
            raise ValueError(f"an operand has shape {leaf.shape}; its first axis must be {first}")
    widths = [size for leaf in (x_NK, *others) for size in leaf.shape[1:]]
    if implementation != "xla" and any(size % LANES for size in widths):
        raise ValueError(f"widths are {widths}; the kernels need multiples of {LANES}")


def _rows_float32(x_NK, matrix_EKM, tiles: Tiles, transposed: bool = False) -> jax.Array:
    matrix_EKM = jnp.swapaxes(matrix_EKM, 1, 2) if transposed else matrix_EKM
    float32 = jnp.dtype(jnp.float32)
    return lax.ragged_dot(x_NK, matrix_EKM, tiles.count * ROWS, preferred_element_type=float32)
