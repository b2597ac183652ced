"""Reductions, cumulative sums, argmax. Every reduction keeps its axes and drops them by a reshape,
so that one which JAX puts back at once costs nothing.
"""

from lowering.rules.context import Context, lowers
from lowering.rules.elementwise import narrow

REDUCTIONS = {
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "prod",
    "reduce_and": "min",
    "reduce_or": "max",
}


@lowers(*REDUCTIONS)
def reduce_rule(ctx: Context, x, *, axes, **_):
    if ctx.node.primitive in ("reduce_and", "reduce_or") and ctx.node.inputs[0].dtype.kind != "b":
        raise ctx.fail("bitwise reductions of integers")
    op = REDUCTIONS[ctx.node.primitive]
    axes = sorted(int(axis) for axis in axes)
    if op == "prod":
        for axis in axes:
            x = ctx.emit(op, x, dim=axis, keepdim=True)
    elif axes:
        x = ctx.emit(op, x, dim=axes[0] if len(axes) == 1 else tuple(axes), keepdim=True)
    return ctx.reshape(x, ctx.node.outputs[0].shape)


@lowers("argmax", "argmin")
def argmax(ctx: Context, x, *, axes, **_):
    (axis,) = axes
    if ctx.node.primitive == "argmin":
        x = ctx.emit("neg", x)
    last = len(x.shape) - 1
    order = [*(i for i in range(last + 1) if i != axis), axis]
    x = ctx.permute(x, order)
    index = ctx.emit("argmax", x, dim=last, keepdim=True)
    index = ctx.convert(index, "int32")
    return ctx.reshape(index, ctx.node.outputs[0].shape)


@lowers("cumsum")
def cumsum(ctx: Context, x, *, axis, reverse):
    options = {"reverse_order": True} if reverse else {}
    return ctx.emit("cumsum", narrow(x), dim=axis, **options)
