"""Sums over sliding windows as products with constant banded matrices."""

import numpy as np

from lowering.rules.context import Context, lowers
from lowering.rules.matmul import known_matrix


@lowers("reduce_window_sum")
def reduce_window_sum(
    ctx: Context,
    x,
    *,
    window_dimensions,
    window_strides,
    padding,
    base_dilation,
    window_dilation,
):
    """One banded matrix an axis with a window: exact, any stride, padding and dilation."""
    if any(step != 1 for step in base_dilation):
        raise ctx.fail("a dilated base")
    rank = len(x.shape)
    for axis in range(rank):
        window = (window_dimensions[axis], window_strides[axis], window_dilation[axis])
        if window[:2] == (1, 1) and tuple(padding[axis]) == (0, 0):
            continue
        x = along_axis(ctx, x, axis, window_matrix(x.shape[axis], *window, *padding[axis]))
    return x


def window_matrix(size: int, width: int, stride: int, dilation: int, low: int, high: int):
    """[size, out]: column j sums the inputs that window j covers."""
    reach = dilation * (width - 1) + 1
    count = (size + low + high - reach) // stride + 1
    matrix = np.zeros((size, count), np.float32)
    for column in range(count):
        rows = column * stride - low + dilation * np.arange(width)
        matrix[rows[(rows >= 0) & (rows < size)], column] += 1
    return matrix


def along_axis(ctx: Context, x, axis: int, matrix: np.ndarray):
    """x times a constant [size, out] matrix along one axis; time on the rows needs no transpose."""
    rank = len(x.shape)
    if rank == 1:
        row = ctx.emit("matmul", ctx.reshape(x, (1, *x.shape)), known_matrix(matrix))
        return ctx.reshape(row, (matrix.shape[1],))
    if axis == rank - 2:
        lead = (1,) * (rank - 2)
        return ctx.emit("matmul", known_matrix(matrix.T.reshape(*lead, *matrix.T.shape)), x)
    order = [i for i in range(rank) if i != axis] + [axis]
    inverse = [order.index(i) for i in range(rank)]
    return ctx.permute(ctx.emit("matmul", ctx.permute(x, order), known_matrix(matrix)), inverse)
