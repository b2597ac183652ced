"""Moving data: reshape, transpose, broadcast, slices, concatenation, padding."""

import numpy as np

from lowering.rules.context import Context, Operand, expand, lowers, uniform
from lowering.trace import Known


@lowers("reshape")
def reshape(ctx: Context, x, *, new_sizes, dimensions=None, **_):
    if dimensions is not None:
        raise ctx.fail("a reshape that also permutes; use jnp.transpose first")
    return ctx.reshape(x, new_sizes)


@lowers("squeeze", "expand_dims")
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


@lowers("concatenate")
def concatenate(ctx: Context, *xs, dimension):
    parts = [x for x in xs if x.shape[dimension]]
    return parts[0] if len(parts) == 1 else ctx.emit("concat", *parts, dim=dimension)


@lowers("stack")
def stack(ctx: Context, *xs, axis=0, **_):
    rows = [ctx.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in xs]
    return concatenate(ctx, *rows, dimension=axis)


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
    if tuple(ends) == x.shape and not any(begins) and all(step == 1 for step in steps):
        return x
    return ctx.emit("slice", x, begins=tuple(begins), ends=tuple(ends), steps=tuple(steps))


@lowers("slice")
def slice_rule(ctx: Context, x, *, start_indices, limit_indices, strides):
    begins, ends = map(int, start_indices), map(int, limit_indices)
    steps = map(int, strides or [1] * len(x.shape))
    return _slice(ctx, x, list(begins), list(ends), list(steps))


def static_starts(ctx: Context, starts, shape, sizes) -> list[int]:
    """Start indices known at lowering time, clamped as JAX does."""
    if not all(isinstance(start, Known) for start in starts):
        raise ctx.fail(
            "the start depends on the inputs; slice at fixed positions, or select with a mask"
        )
    limits = zip(starts, shape, sizes, strict=True)
    return [int(np.clip(start.numpy(), 0, full - size)) for start, full, size in limits]


@lowers("dynamic_slice")
def dynamic_slice(ctx: Context, x, *starts, slice_sizes):
    begins = static_starts(ctx, starts, x.shape, slice_sizes)
    ends = [begin + size for begin, size in zip(begins, slice_sizes, strict=True)]
    return _slice(ctx, x, begins, ends, [1] * len(begins))


@lowers("dynamic_update_slice")
def dynamic_update_slice(ctx: Context, x, update, *starts):
    """Replace a slab that spans all axes but one (concatenation of what is around it)."""
    begins = static_starts(ctx, starts, x.shape, update.shape)
    axes = [axis for axis, size in enumerate(update.shape) if size != x.shape[axis]]
    if len(axes) > 1:
        raise ctx.fail("an update that is smaller than its target along more than one axis")
    if not axes:
        return update
    (axis,) = axes
    end = begins[axis] + update.shape[axis]
    around = [slab(ctx, x, axis, 0, begins[axis]), update, slab(ctx, x, axis, end, x.shape[axis])]
    return concatenate(ctx, *around, dimension=axis)


@lowers("pad")
def pad(ctx: Context, x, padding_value, *, padding_config):
    """Padding at the back by ttnn.pad; at the front by concatenation; negative by slicing."""
    value = uniform(padding_value)
    if value is None:
        raise ctx.fail("the padding value depends on the inputs")
    if any(interior for _, _, interior in padding_config):
        raise ctx.fail("interior padding (dilation)")
    spans = [(int(low), int(high)) for low, high, _ in padding_config]
    sizes = list(enumerate(x.shape))
    begins = [max(0, -spans[axis][0]) for axis, _ in sizes]
    ends = [size - max(0, -spans[axis][1]) for axis, size in sizes]
    x = _slice(ctx, x, begins, ends, [1] * len(begins))
    for axis, (low, _) in enumerate(spans):
        if low > 0:
            front = np.full((*x.shape[:axis], low, *x.shape[axis + 1 :]), value, np.float32)
            front = front.astype(np.dtype(ctx.value(x).dtype))
            x = ctx.emit("concat", Known(front), x, dim=axis)
    back = tuple((0, max(0, high)) for _, high in spans)
    return ctx.emit("pad", x, padding=back, value=value) if any(map(max, back)) else x
