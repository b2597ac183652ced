"""Products of rows sorted by expert with the experts' matrices: forward and both gradients.

Each has a kernel for Hopper GPUs (implementation "mosaic", Pallas' Mosaic GPU backend, which JAX
calls experimental) and a plain twin ("xla", `lax.ragged_dot`) with the same signature. Sums are
float32, results have the dtype of the rows. Rows come in tiles of ROWS with one expert each.
Letters: N rows, P tiles, K and M the contracted and the resulting width, E experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Implementation = Literal["xla", "mosaic"]
# Rows of a tile; what every width must be a multiple of for the kernels.
ROWS = 128
LANES = 64
CAPABILITY = "9.0"


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
    device = jax.devices()[0]
    if device.platform != "gpu" or device.compute_capability != CAPABILITY:
        return f"is for Hopper GPUs, not {device.device_kind}"
    try:
        from jax.experimental.pallas import mosaic_gpu  # noqa: F401
    except ImportError as error:
        return f"needs jax.experimental.pallas.mosaic_gpu: {error}"
    return None


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
    if implementation == "mosaic":
        from moejax.kernels.grouped_rows import rows_kernel

        matrices = (matrix_EKM,)
        return rows_kernel(x_NK, matrices, tiles.expert, tiles.used, transposed=transposed)[0]
    return _rows_float32(x_NK, matrix_EKM, tiles, transposed).astype(x_NK.dtype)


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
    if implementation == "mosaic":
        from moejax.kernels.grouped_rows import rows_kernel

        return rows_kernel(x_NK, (gate_EKM, up_EKM), tiles.expert, tiles.used, keep=keep)
    gate_NM, up_NM = (_rows_float32(x_NK, leaf, tiles) for leaf in (gate_EKM, up_EKM))
    results = jax.nn.silu(gate_NM) * up_NM, gate_NM, up_NM
    return tuple(leaf.astype(x_NK.dtype) for leaf in results[: 3 if keep else 1])


def weights_product(
    x_NK: jax.Array, y_NM: jax.Array, tiles: Tiles, *, implementation: Implementation
) -> jax.Array:
    """x^T y over the rows of each expert: the gradient of its matrix [E, K, M]."""
    _check(tiles, implementation, x_NK, y_NM)
    if implementation == "mosaic":
        from moejax.kernels.grouped_weights import weights_kernel

        return weights_kernel(x_NK, y_NM, tiles.first, tiles.count)
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
    if implementation == "mosaic" and any(size % LANES for size in widths):
        raise ValueError(f"widths are {widths}; the kernels need multiples of {LANES}")


def _rows_float32(x_NK, matrix_EKM, tiles: Tiles, transposed: bool = False) -> jax.Array:
    matrix_EKM = jnp.swapaxes(matrix_EKM, 1, 2) if transposed else matrix_EKM
    float32 = jnp.dtype(jnp.float32)
    return lax.ragged_dot(x_NK, matrix_EKM, tiles.count * ROWS, preferred_element_type=float32)
