"""top_k and sort. Ties come lowest index first, as in JAX."""

from lowering.rules.context import Context, lowers, uniform
from lowering.trace import Known


@lowers("top_k")
def top_k(ctx: Context, x, *, k, axis=-1, **_):
    if ctx.node.inputs[0].dtype.kind != "f":
        raise ctx.fail("the largest of integers; convert to float first")
    values, indices = ctx.emit_many(
        "topk", x, k=k, dim=axis % len(x.shape), largest=True, sorted=True, stable=True
    )
    return values, ctx.convert(indices, "int32")


@lowers("sort")
def sort(ctx: Context, x, *others, dimension, num_keys, **_):
    """One float key; a second operand must be the positions (jnp.argsort)."""
    if num_keys != 1 or ctx.node.inputs[0].dtype.kind != "f":
        raise ctx.fail("a sort by several keys or of integers; sort one float key")
    values, indices = ctx.emit_many("sort", x, dim=dimension, descending=False, stable=True)
    if not others:
        return [values]
    (other,) = others
    if not _is_positions(other, dimension):
        raise ctx.fail(
            "a sort that carries other values along; use jnp.argsort and take_along_axis"
        )
    return [values, ctx.convert(indices, "int32")]


def _is_positions(operand, axis: int) -> bool:
    """Whether known numbers count 0, 1, 2 ... along the axis."""
    if not isinstance(operand, Known):
        return False
    columns = (operand.numpy().take([i], axis) for i in range(operand.shape[axis]))
    return all(uniform(Known(column)) == i for i, column in enumerate(columns))
