"""Moving data: reshape, transpose, broadcast, slices, concatenation, padding."""

from collections.abc import Sequence

import numpy as np

from lowering.graph import Known
from lowering.rules.context import Context, Operand, expand, lowers, uniform

MOST_PARTS = 50  # tensors that one concat takes without splitting it up itself


@lowers("reshape")
def reshape(ctx: Context, x, *, new_sizes, dimensions=None, **_):
    if dimensions is not None:
        raise ctx.fail("a reshape that also permutes; use jnp.transpose first")
    return ctx.reshape(x, new_sizes)


@lowers("squeeze")
def squeeze(ctx: Context, x, **_):
    return ctx.reshape(x, ctx.node.outputs[0].shape)


@lowers("transpose")
def transpose(ctx: Context, x, *, permutation):
    return ctx.permute(x, permutation)


@lowers("broadcast_in_dim")
def broadcast_in_dim(ctx: Context, x, *, shape, broadcast_dimensions, **_):
    """Unit axes by a reshape, then an expand; the expand is dropped where an op broadcasts."""
    sizes = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        sizes[axis] = size
    return expand(ctx, ctx.reshape(x, sizes), shape)


@lowers("tile")
def tile(ctx: Context, x, *, reps):
    """A unit axis is expanded, another one joined from copies."""
    x = ctx.reshape(x, (1,) * (len(reps) - len(x.shape)) + tuple(x.shape))
    for axis, (count, size) in enumerate(zip(reps, x.shape, strict=True)):
        if size != 1 and count != 1:
            x = concatenate(ctx, *[x] * count, dimension=axis)
    return expand(ctx, x, ctx.node.outputs[0].shape)


@lowers("concatenate")
def concatenate(ctx: Context, *xs, dimension):
    parts = [x for x in xs if x.shape[dimension]]
    while len(parts) > 1:
        groups = (parts[i : i + MOST_PARTS] for i in range(0, len(parts), MOST_PARTS))
        parts = [_concat(ctx, group, dimension) for group in groups]
    return parts[0]


def _concat(ctx: Context, parts: list[Operand], axis: int) -> Operand:
    return parts[0] if len(parts) == 1 else ctx.emit("concat", *parts, dim=int(axis))


@lowers("stack")
def stack(ctx: Context, *xs, axis):
    rows = [ctx.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in xs]
    return concatenate(ctx, *rows, dimension=axis)


@lowers("unstack")
def unstack(ctx: Context, x, *, axis):
    rows = (slab(ctx, x, axis, i, i + 1) for i in range(x.shape[axis]))
    shapes = (output.shape for output in ctx.node.outputs)
    return [ctx.reshape(row, shape) for row, shape in zip(rows, shapes, strict=True)]


@lowers("split")
def split(ctx: Context, x, *, sizes, axis):
    ends = np.cumsum(sizes)
    return [slab(ctx, x, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def slab(ctx: Context, x: Operand, axis: int, begin: int, end: int) -> Operand:
    """x[begin:end] along one axis."""
    begins, ends = [0] * len(x.shape), list(x.shape)
    begins[axis], ends[axis] = int(begin), int(end)
    return _slice(ctx, x, begins, ends, [1] * len(x.shape))


def _slice(ctx: Context, x: Operand, begins, ends, steps) -> Operand:
    if isinstance(x, Known):
        spans = zip(begins, ends, steps, strict=True)
        return Known(x.numpy()[tuple(slice(*span) for span in spans)], x.name)
    if any(end <= begin for begin, end in zip(begins, ends, strict=True)):
        empty = [max(0, end - begin) for begin, end in zip(begins, ends, strict=True)]
        return Known(np.zeros(empty, x.dtype))
    if tuple(ends) == x.shape and not any(begins) and all(step == 1 for step in steps):
        return x
    return ctx.emit("slice", x, begins=tuple(begins), ends=tuple(ends), steps=tuple(steps))


@lowers("slice")
def slice_rule(ctx: Context, x, *, start_indices, limit_indices, strides):
    begins, ends = map(int, start_indices), map(int, limit_indices)
    steps = map(int, strides or [1] * len(x.shape))
    return _slice(ctx, x, list(begins), list(ends), list(steps))


def static_starts(starts: Sequence[Known], shape, sizes) -> list[int]:
    """Start indices known at lowering time, clamped as JAX does."""
    limits = zip(starts, shape, sizes, strict=True)
    return [int(np.clip(start.numpy(), 0, full - size)) for start, full, size in limits]


@lowers("dynamic_update_slice")
def dynamic_update_slice(ctx: Context, x, update, *starts):
    computed = [axis for axis, start in enumerate(starts) if not isinstance(start, Known)]
    if computed:
        return _update_one(ctx, x, update, computed[0], starts[computed[0]])
    return replace_block(ctx, x, update, static_starts(starts, x.shape, update.shape))


def _update_one(ctx: Context, x: Operand, update: Operand, axis: int, start: Operand) -> Operand:
    """`x` with `update`, of size 1 along `axis` and else of x's, at a computed position."""
    shape = [1] * len(x.shape)
    if tuple(update.shape) != (*x.shape[:axis], 1, *x.shape[axis + 1 :]):
        raise ctx.fail("a start depends on the inputs; update one position along one axis")
    place = ctx.emit("clamp", ctx.reshape(start, shape), min=0, max=x.shape[axis] - 1)
    shape[axis] = x.shape[axis]
    positions = Known(np.arange(x.shape[axis], dtype=np.int32).reshape(shape))
    hit, number = ctx.emit("eq", place, positions, dtype="float32"), uniform(update)
    if number is not None:
        result = ctx.emit("where", hit, x, true_scalar=float(number))
    else:
        result = ctx.emit("where", hit, update, x)
    return expand(ctx, result, x.shape)


def replace_block(ctx: Context, x: Operand, update: Operand, begins) -> Operand:
    """`x` with `update` in place of the block that begins there: joined from what is around it."""
    shorter = [axis for axis, size in enumerate(update.shape) if size != x.shape[axis]]
    if not shorter:
        return update
    axis = shorter[0]
    begin, end = begins[axis], begins[axis] + update.shape[axis]
    inner = [0 if i == axis else start for i, start in enumerate(begins)]
    middle = replace_block(ctx, slab(ctx, x, axis, begin, end), update, inner)
    around = [slab(ctx, x, axis, 0, begin), middle, slab(ctx, x, axis, end, x.shape[axis])]
    return concatenate(ctx, *around, dimension=axis)


@lowers("pad")
def pad(ctx: Context, x, padding_value, *, padding_config):
    """Padding at the back by ttnn.pad; at the front by concatenation; negative by slicing."""
    value = uniform(padding_value)
    if value is None:
        raise ctx.fail("the padding value depends on the inputs")
    if any(interior for _, _, interior in padding_config):
        raise ctx.fail("padding between elements; interleave with jnp.stack and a reshape")
    spans = [(int(low), int(high)) for low, high, _ in padding_config]
    begins = [max(0, -low) for low, _ in spans]
    ends = [size - max(0, -high) for size, (_, high) in zip(x.shape, spans, strict=True)]
    x = _slice(ctx, x, begins, ends, [1] * len(begins))
    for axis, (low, _) in enumerate(spans):
        if low > 0:
            front = np.full((*x.shape[:axis], low, *x.shape[axis + 1 :]), value, x.dtype)
            x = concatenate(ctx, Known(front), x, dimension=axis)
    back = tuple((0, max(0, high)) for _, high in spans)
    if not any(map(max, back)):
        return x
    return ctx.emit("pad", x, padding=back, value=value if x.dtype == "int32" else float(value))
