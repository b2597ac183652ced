"""gather in the three forms that the device has: whole rows, along an axis, static positions."""

import numpy as np

from lowering.rules.context import Context, Operand, expand, lowers
from lowering.rules.shape import concatenate, slab
from lowering.trace import Known


@lowers("gather")
def gather(ctx: Context, x, indices, *, dimension_numbers, slice_sizes, **_):
    numbers = dimension_numbers
    if numbers.operand_batching_dims:
        return _along_axis(ctx, x, indices, numbers, slice_sizes)
    axis = _row_axis(x, numbers, slice_sizes)
    if axis is None:
        raise ctx.fail(
            "only x[indices] along one axis, jnp.take_along_axis and static positions are supported"
        )
    if isinstance(indices, Known):
        return _static_rows(ctx, x, indices.numpy(), axis, numbers)
    return _rows(ctx, x, indices, axis, numbers)


def _row_axis(x: Operand, numbers, slice_sizes) -> int | None:
    """The axis that a take of whole rows indexes, or None for another kind of gather."""
    if len(numbers.start_index_map) != 1 or numbers.collapsed_slice_dims != numbers.start_index_map:
        return None
    (axis,) = numbers.start_index_map
    whole = all(size == (1 if i == axis else x.shape[i]) for i, size in enumerate(slice_sizes))
    return axis if whole else None


def _place(ctx: Context, rows: Operand, axis: int, numbers, index_shape) -> Operand:
    """rows [.., n at `axis`, ..] -> the result's axes: index axes where JAX puts them."""
    shape = (*rows.shape[:axis], *index_shape, *rows.shape[axis + 1 :])
    rows = ctx.reshape(rows, shape)
    count, rank = len(index_shape), len(shape)
    index_axes = iter(range(axis, axis + count))
    offset_axes = iter([i for i in range(rank) if not axis <= i < axis + count])
    order = [next(offset_axes if i in numbers.offset_dims else index_axes) for i in range(rank)]
    return ctx.permute(rows, order)


def _static_rows(ctx: Context, x, indices: np.ndarray, axis: int, numbers) -> Operand:
    """Known positions: slices of consecutive runs, joined."""
    index_shape, flat = indices.shape[:-1], indices.reshape(-1)
    flat = np.clip(flat, 0, x.shape[axis] - 1)
    runs = np.split(flat, np.flatnonzero(np.diff(flat) != 1) + 1)
    slabs = [slab(ctx, x, axis, run[0], run[-1] + 1) for run in runs]
    return _place(ctx, concatenate(ctx, *slabs, dimension=axis), axis, numbers, index_shape)


def _rows(ctx: Context, x, indices, axis: int, numbers) -> Operand:
    """Rows at computed positions of a table [N, D]: ttnn.embedding on flat indices."""
    if len(x.shape) != 2 or axis != 0:
        raise ctx.fail("rows at computed positions need a 2-D table indexed along its first axis")
    index_shape = tuple(indices.shape[:-1])
    count = int(np.prod(index_shape))
    if ctx.policy == "float32":  # ttnn.embedding takes no float32 table
        column = ctx.convert(ctx.reshape(indices, (count, 1)), "uint32")
        rows = ctx.emit("gather", x, expand(ctx, column, (count, x.shape[1])), dim=0)
    else:
        flat = ctx.convert(ctx.reshape(indices, (1, count)), "uint32")
        rows = ctx.emit("embedding", flat, x, layout="tile")
    return _place(ctx, ctx.reshape(rows, (count, x.shape[1])), 0, numbers, index_shape)


def _along_axis(ctx: Context, x, indices, numbers, slice_sizes) -> Operand:
    """jnp.take_along_axis: indices of x's rank, every other axis a batch axis."""
    batch = tuple(numbers.operand_batching_dims)
    plain = (
        len(numbers.start_index_map) == 1
        and not numbers.offset_dims
        and all(size == 1 for size in slice_sizes)
        and len(batch) == len(x.shape) - 1
        and tuple(numbers.start_indices_batching_dims) == batch
    )
    if not plain:
        raise ctx.fail("only jnp.take_along_axis with every other axis of equal size is supported")
    (axis,) = numbers.start_index_map
    index = ctx.convert(ctx.reshape(indices, tuple(indices.shape[:-1])), "uint32")
    return ctx.emit("gather", x, index, dim=axis)
