"""dot_general as matmul: axes brought to [batch, M, K] x [batch, K, N], weights on the host."""

import math
from collections.abc import Sequence

import numpy as np
from jax import lax

from lowering.graph import Known
from lowering.ir import Value
from lowering.rules.context import Context, Operand, is_floating, lowers


@lowers("dot_general")
def dot_general(ctx: Context, a, b, *, dimension_numbers, precision=None, **_):
    """Result axes: batch, then a's free axes, then b's free axes.

    Of highest precision (routers) it stays float32 under every policy.
    """
    if not is_floating(ctx.node.outputs[0]):
        raise ctx.fail("matrix products of integers are not available on the device; use floats")
    if precision in (lax.Precision.HIGHEST, (lax.Precision.HIGHEST,) * 2):
        ctx.keep_float32()
    (a_sum, b_sum), (a_batch, b_batch) = dimension_numbers
    if not a_batch and isinstance(a, Known) and isinstance(b, Value):
        return _weight_first(ctx, a, b, a_sum, b_sum)
    if not a_batch:
        return _unbatched(ctx, a, b, a_sum, b_sum)
    return _batched(ctx, a, b, (a_sum, b_sum), (a_batch, b_batch))


def matmul(ctx: Context, a: Operand, b: Operand) -> Value:
    """[.., M, K] x [.., K, N]."""
    return ctx.emit("matmul", a, b)


def _free(operand: Operand, *taken: Sequence[int]) -> list[int]:
    used = {axis for axes in taken for axis in axes}
    return [axis for axis in range(len(operand.shape)) if axis not in used]


def _sizes(operand: Operand, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(operand.shape[axis] for axis in axes)


def _unbatched(ctx: Context, a: Operand, b: Operand, a_sum, b_sum) -> Operand:
    """a [M.., K..] x b [K.., N..]: b becomes 2-D, a keeps its leading axes."""
    a_free, b_free = _free(a, a_sum), _free(b, b_sum)
    lead = _sizes(a, a_free) or (1,)
    size = math.prod(_sizes(a, a_sum))
    left = ctx.reshape(ctx.permute(a, [*a_free, *a_sum]), (*lead, size))
    right = ctx.reshape(ctx.permute(b, [*b_sum, *b_free]), (size, math.prod(_sizes(b, b_free))))
    left = left if len(left.shape) > 1 else ctx.reshape(left, (1, *left.shape))
    return ctx.reshape(matmul(ctx, left, right), _sizes(a, a_free) + _sizes(b, b_free))


def _weight_first(ctx: Context, a: Known, b: Value, a_sum, b_sum) -> Operand:
    """A weight on the left: multiply from the right, then move its axes to the front.

    The move is one permute, which meets the one that usually follows in the model and cancels.
    """
    product = _unbatched(ctx, b, a, b_sum, a_sum)
    b_rank = len(b.shape) - len(b_sum)
    rank = len(product.shape)
    return ctx.permute(product, [*range(b_rank, rank), *range(b_rank)])


def _batched(ctx: Context, a: Operand, b: Operand, sums, batches) -> Operand:
    (a_sum, b_sum), (a_batch, b_batch) = sums, batches
    a_free, b_free = _free(a, a_sum, a_batch), _free(b, b_sum, b_batch)
    batch, size = _sizes(a, a_batch), math.prod(_sizes(a, a_sum))
    rows, columns = math.prod(_sizes(a, a_free)), math.prod(_sizes(b, b_free))
    left = ctx.reshape(ctx.permute(a, [*a_batch, *a_free, *a_sum]), (*batch, rows, size))
    right = ctx.reshape(ctx.permute(b, [*b_batch, *b_sum, *b_free]), (*batch, size, columns))
    shape = batch + _sizes(a, a_free) + _sizes(b, b_free)
    return ctx.reshape(matmul(ctx, left, right), shape)


def known_matrix(array: np.ndarray) -> Known:
    """A constant matrix made by a rule."""
    return Known(np.asarray(array, np.float32))
