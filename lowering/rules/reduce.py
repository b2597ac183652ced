"""Reductions, cumulative sums and products, argmax.

Every reduction keeps its axes and drops them by a reshape, so that one which JAX puts back at once
costs nothing.
"""

from lowering.rules.context import Context, is_bool, is_floating, is_integer, lowers
from lowering.rules.shape import slab

REDUCTIONS = {
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "min",
    "reduce_or": "max",
}


@lowers(*REDUCTIONS)
def reduce_rule(ctx: Context, x, *, axes, **_):
    name = ctx.node.primitive
    if name in ("reduce_and", "reduce_or") and not is_bool(ctx.node.inputs[0]):
        raise ctx.fail("bitwise reductions of integers are not supported; compare first")
    # along an axis of one element there is nothing to reduce
    axes = sorted(int(axis) for axis in axes if x.shape[axis] != 1)
    if axes:
        dim = axes[0] if len(axes) == 1 else tuple(axes)
        x = ctx.emit(REDUCTIONS[name], x, dim=dim, keepdim=True)
    return ctx.reshape(x, ctx.node.outputs[0].shape)


@lowers("reduce_prod")
def product(ctx: Context, x, *, axes, **_):
    """The last of the cumulative products: ttnn.prod is 4 % off after 40 factors of any dtype."""
    _require_floats(ctx)
    for axis in axes:
        if x.shape[axis] != 1:
            x = slab(ctx, ctx.emit("cumprod", x, dim=axis), axis, x.shape[axis] - 1, x.shape[axis])
    return ctx.reshape(x, ctx.node.outputs[0].shape)


@lowers("argmax", "argmin")
def argmax(ctx: Context, x, *, axes, **_):
    """The first of equal elements, as in JAX."""
    (axis,) = axes
    if is_integer(ctx.node.inputs[0]):
        raise ctx.fail("ttnn finds the position of the largest float only; convert first")
    if ctx.node.primitive == "argmin":
        x = ctx.emit("neg", x)
    index = ctx.emit("argmax", x, dim=axis, keepdim=True)
    return ctx.reshape(ctx.convert(index, "int32"), ctx.node.outputs[0].shape)


@lowers("cumsum", "cumprod")
def cumulative(ctx: Context, x, *, axis, reverse):
    name = ctx.node.primitive
    if name == "cumprod":
        _require_floats(ctx)
    options = {"reverse_order": True} if reverse else {}
    return ctx.emit(name, x, dim=axis, **options)


def _require_floats(ctx: Context) -> None:
    if not is_floating(ctx.node.inputs[0]):
        raise ctx.fail("ttnn multiplies up floats only; convert first")
