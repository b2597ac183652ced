"""top_k and sort. Ties come lowest index first, as in JAX.

ttnn works along the last axis; other axes are brought there.
"""

from lowering.graph import Known
from lowering.rules.context import Context, Operand, is_floating, lowers, uniform
from lowering.rules.index import gather_along


@lowers("top_k")
def top_k(ctx: Context, x, *, k, axis=-1, **_):
    if not is_floating(ctx.node.inputs[0]):
        raise ctx.fail("ttnn ranks floats only; convert first")
    options = {"k": k, "largest": True, "sorted": True, "stable": True}
    return _along_last(ctx, "topk", x, axis % len(x.shape), **options)


@lowers("sort")
def sort(ctx: Context, x, *others, dimension, num_keys, **_):
    """One float key; other operands are carried along by their positions."""
    if num_keys != 1 or not is_floating(ctx.node.inputs[0]):
        raise ctx.fail("a sort by several keys or of integers; sort one float key")
    options = {"descending": False, "stable": True}
    values, indices = _along_last(ctx, "sort", x, dimension, **options)
    carried = (_carry(ctx, other, indices, dimension) for other in others)
    return [values, *carried]


def _along_last(ctx: Context, op: str, x: Operand, axis: int, **attrs) -> list[Operand]:
    """Values and int32 indices of an op along an axis."""
    last = len(x.shape) - 1
    order = [*(i for i in range(last + 1) if i != axis), axis]
    inverse = [order.index(i) for i in range(last + 1)]
    values, indices = ctx.emit_many(op, ctx.permute(x, order), dim=last, **attrs)
    # at once: ttnn moves no 16-bit integers
    return [ctx.permute(result, inverse) for result in (values, ctx.convert(indices, "int32"))]


def _carry(ctx: Context, other: Operand, indices: Operand, axis: int) -> Operand:
    return indices if _is_positions(other, axis) else gather_along(ctx, other, indices, axis)


def _is_positions(operand: Operand, axis: int) -> bool:
    """Whether known numbers count 0, 1, 2 ... along the axis."""
    if not isinstance(operand, Known):
        return False
    columns = (operand.numpy().take([i], axis) for i in range(operand.shape[axis]))
    return all(uniform(Known(column)) == i for i, column in enumerate(columns))
