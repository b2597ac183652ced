"""gather in the forms that the device has: whole rows, along an axis, static positions; and what
JAX says with gather, scatter and reversal at positions that are known.
"""

import numpy as np

from lowering.graph import Known
from lowering.ir import Value
from lowering.rules.context import Context, Operand, expand, lowers, uniform
from lowering.rules.elementwise import binary
from lowering.rules.shape import concatenate, replace_block, slab, static_starts

MOST_RUNS = 2  # more pieces than this cost more than one gather
MOST_PICKED_FROM = 1024  # rows; from more a product with 0 and 1 costs more than a gather


@lowers("gather")
def gather(ctx: Context, x, indices, *, dimension_numbers, slice_sizes, mode=None, **_):
    numbers = dimension_numbers
    if (number := uniform(x)) is not None:
        result = ctx.node.outputs[0]
        return Known(np.full(result.shape, number, result.dtype))
    if numbers.operand_batching_dims:
        return _along_axis(ctx, x, indices, numbers, slice_sizes, mode)
    axis = _row_axis(x, numbers, slice_sizes)
    if axis is None:
        raise ctx.fail(
            "only x[indices] along one axis, jnp.take_along_axis and static positions are supported"
        )
    index_shape = tuple(indices.shape[:-1])
    if isinstance(indices, Known):
        positions = np.clip(indices.numpy().reshape(-1), 0, x.shape[axis] - 1)
        rows = take(ctx, x, axis, positions)
    else:
        rows = _rows(ctx, x, ctx.reshape(indices, index_shape), axis, mode)
    return _place(ctx, rows, axis, numbers, index_shape)


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


def take(ctx: Context, x: Operand, axis: int, positions: np.ndarray) -> Operand:
    """x at known positions along an axis: a few slices of consecutive runs, or one gather."""
    if isinstance(x, Known):
        return Known(x.numpy().take(positions, axis), x.name)
    runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
    if len(runs) <= MOST_RUNS:
        slabs = [slab(ctx, x, axis, run[0], run[-1] + 1) for run in runs]
        return concatenate(ctx, *slabs, dimension=axis)
    shape = [1] * len(x.shape)
    shape[axis] = len(positions)
    index = np.broadcast_to(
        positions.reshape(shape), (*x.shape[:axis], len(positions), *x.shape[axis + 1 :])
    )
    return gather_along(ctx, x, Known(index.astype(np.uint32)), axis)


def gather_along(ctx: Context, x: Operand, index: Operand, axis: int) -> Operand:
    """x at an index of its rank; the axis is brought to the end, ttnn would pay more for it."""
    shape, last = tuple(index.shape), len(x.shape) - 1
    if last == 0:
        x, index = (ctx.reshape(operand, (1, *operand.shape)) for operand in (x, index))
        return ctx.reshape(ctx.emit("gather", x, ctx.convert(index, "uint32"), dim=1), shape)
    order = [*(i for i in range(last + 1) if i != axis), axis]
    x, index = ctx.permute(x, order), ctx.permute(ctx.convert(index, "uint32"), order)
    result = ctx.emit("gather", x, index, dim=last)
    return ctx.permute(result, [order.index(i) for i in range(last + 1)])


def _rows(ctx: Context, x, indices, axis: int, mode) -> Operand:
    """x at computed positions along an axis, the indices flattened.

    Rows of a table [N, D] come by ttnn.embedding, whose table is bfloat16; others by ttnn.gather.
    """
    count = int(np.prod(indices.shape))
    indices = _in_bounds(ctx, indices, x.shape[axis], mode)
    shape = [1] * len(x.shape)
    shape[axis] = count
    precise = ctx.policy == "float32" or ctx.source.float32 or x.dtype != "float32"
    if len(x.shape) == 2 and axis == 0 and not precise:
        # ttnn looks at the first and the last axis of the indices only
        flat = indices if len(indices.shape) == 2 else ctx.reshape(indices, (1, count))
        rows = ctx.emit("embedding", ctx.convert(flat, "uint32"), x, layout="tile")
        return ctx.reshape(rows, (count, x.shape[1]))
    return _picked(ctx, x, ctx.reshape(indices, shape), axis)


@lowers("dynamic_slice")
def dynamic_slice(ctx: Context, x, *starts, slice_sizes):
    """A slice at fixed starts, one of which may be computed."""
    computed = [axis for axis, start in enumerate(starts) if isinstance(start, Value)]
    if len(computed) > 1:
        raise ctx.fail("more than one start depends on the inputs; slice one axis at a time")
    fixed = [Known(np.zeros((), np.int32)) if isinstance(s, Value) else s for s in starts]
    sizes = [x.shape[i] if i in computed else size for i, size in enumerate(slice_sizes)]
    for axis, begin in enumerate(static_starts(fixed, x.shape, sizes)):
        x = slab(ctx, x, axis, begin, begin + sizes[axis])
    for axis in computed:
        first = ctx.emit("clamp", starts[axis], min=0, max=x.shape[axis] - slice_sizes[axis])
        offsets = Known(np.arange(slice_sizes[axis], dtype=np.int32))
        x = _rows(ctx, x, binary(ctx, "add", offsets, first), axis, None)
    return x


def _in_bounds(ctx: Context, indices: Operand, size: int, mode) -> Operand:
    """Indices clamped where JAX clamps; beyond the ends other modes are undefined on the device."""
    if "CLIP" not in str(mode).upper():
        return indices
    return ctx.emit("clamp", indices, min=0, max=size - 1)


def _along_axis(ctx: Context, x, indices, numbers, slice_sizes, mode) -> Operand:
    """jnp.take_along_axis: indices of x's rank, whose other axes are batch axes or 1."""
    axes = dict(
        zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    )
    rank, index_rank = len(x.shape), len(indices.shape) - 1
    (axis, *more) = numbers.start_index_map
    whole = [i for i in range(rank) if i not in axes and i != axis]
    if more or slice_sizes[axis] > 1 or any(slice_sizes[i] != x.shape[i] for i in whole):
        raise ctx.fail("of indices with batch axes, only jnp.take_along_axis is supported")
    free = [i for i in range(index_rank) if i not in axes.values()]
    index = ctx.reshape(indices, tuple(indices.shape[:-1]))
    sizes = [index.shape[i] for i in free]
    count = int(np.prod(sizes))
    index = ctx.permute(index, [i for d in range(rank) for i in _index_axes(d, axis, axes, free)])
    index = ctx.reshape(
        index, [count if i == axis else x.shape[i] if i in axes else 1 for i in range(rank)]
    )
    if isinstance(index, Known):
        index = Known(np.clip(index.numpy(), 0, x.shape[axis] - 1), index.name)
    else:
        index = _in_bounds(ctx, index, x.shape[axis], mode)
    y = _picked(ctx, x, index, axis)
    # axes of the result, each under what it is: ("index", axis) or ("whole", axis)
    kept = [i for i in whole if i not in numbers.collapsed_slice_dims]
    labels = [
        label
        for d in range(rank)
        for label in (
            [("whole", d)]
            if d in kept
            else [("index", i) for i in _index_axes(d, axis, axes, free)]
        )
    ]
    lengths = [x.shape[i] if kind == "whole" else indices.shape[i] for kind, i in labels]
    whole_axes = iter([("whole", i) for i in kept])
    index_axes = iter([("index", i) for i in range(index_rank)])
    order = [
        labels.index(next(whole_axes if i in numbers.offset_dims else index_axes))
        for i in range(len(labels))
    ]
    return ctx.permute(ctx.reshape(y, lengths), order)


def _index_axes(axis: int, indexed: int, batch: dict[int, int], free: list[int]) -> list[int]:
    """Which axes of the index lie along an axis of the operand."""
    return free if axis == indexed else [batch[axis]] if axis in batch else []


def _picked(ctx: Context, x: Operand, index: Operand, axis: int) -> Operand:
    """x along an axis at an index of its rank, which repeats along its other axes of size 1.

    Rows, one index for a whole one, are a product with 0 and 1: exact for bfloat16.
    """
    shape = tuple(index.shape[i] if i == axis else size for i, size in enumerate(x.shape))
    precise = ctx.policy == "float32" or ctx.source.float32 or x.dtype != "float32"
    last = len(x.shape) - 1
    rows = last >= 2 and axis == last - 1 and index.shape[last] == 1
    if rows and not precise and x.shape[axis] <= MOST_PICKED_FROM:
        places = np.arange(x.shape[axis], dtype=np.int32).reshape(*(1,) * last, -1)
        hits = binary(ctx, "eq", index, Known(places), dtype="float32")
        return ctx.emit("matmul", expand(ctx, hits, (*x.shape[:axis], *hits.shape[axis:])), x)
    return gather_along(ctx, x, expand(ctx, ctx.convert(index, "uint32"), shape), axis)


@lowers("rev")
def rev(ctx: Context, x, *, dimensions):
    for axis in dimensions:
        if x.shape[axis] > 1:
            x = take(ctx, x, axis, np.arange(x.shape[axis])[::-1])
    return x


@lowers("scatter", "scatter-add")
def scatter(ctx: Context, x, indices, updates, *, dimension_numbers, **_):
    """x.at[block].set(...) or .add(...), for one block at a known position."""
    numbers = dimension_numbers
    if not isinstance(indices, Known) or indices.shape != (
        len(numbers.scatter_dims_to_operand_dims),
    ):
        raise ctx.fail("only .at[...].set and .add of one block at a known position are supported")
    window = iter([updates.shape[axis] for axis in numbers.update_window_dims])
    sizes = [
        1 if axis in numbers.inserted_window_dims else next(window) for axis in range(len(x.shape))
    ]
    begins = [0] * len(x.shape)
    for axis, start in zip(numbers.scatter_dims_to_operand_dims, indices.numpy(), strict=True):
        begins[axis] = int(start)
    if any(b < 0 or b + s > n for b, s, n in zip(begins, sizes, x.shape, strict=True)):
        raise ctx.fail("the block reaches beyond the array; JAX drops such updates")
    block = ctx.reshape(updates, sizes)
    if ctx.node.primitive == "scatter-add":
        block = ctx.emit("add", _block(ctx, x, begins, sizes), block)
    return replace_block(ctx, x, block, begins)


def _block(ctx: Context, x: Operand, begins, sizes) -> Operand:
    for axis, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        x = slab(ctx, x, axis, begin, begin + size)
    return x
