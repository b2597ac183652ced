"""Device rules of the marked regions. Each declines what it cannot serve; the body is then lowered.

Time is on the rows and channels are on the columns, so a linear map over time is a product with the
transposed weight on the left: no transposes of the data.
"""

import numpy as np

from lowering.graph import Known
from lowering.rules.context import DECLINED, Context, Operand, lowers
from lowering.rules.elementwise import narrow


def _all_known(*operands: Operand | None) -> bool:
    return all(operand is None or isinstance(operand, Known) for operand in operands)


def moving_average_matrix(size: int, kernel_size: int) -> np.ndarray:
    """[size, size] in float64: row i averages the window around i, edges repeated."""
    half = kernel_size // 2
    offsets = np.arange(-half, kernel_size - half)
    columns = np.clip(np.arange(size)[:, None] + offsets, 0, size - 1)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], columns), 1 / kernel_size)
    return matrix


def time_product(ctx: Context, kernel: np.ndarray, x: Operand) -> Operand:
    """kernel [S, Q] over the time axis of x [.., S, C]: one matmul with kernel^T on the left."""
    lead = (1,) * (len(x.shape) - 2)
    weight = np.ascontiguousarray(kernel.T, dtype=np.float32)
    return ctx.emit("matmul", ctx.constant(weight.reshape(*lead, *weight.shape)), x)


@lowers("moejax.linear")
def linear(ctx: Context, x, kernel, bias=None, *, activation):
    """ttnn.linear with a resident weight; bias and relu or silu are fused into the same program."""
    if not _all_known(kernel, bias) or activation not in (None, "relu", "silu"):
        return DECLINED
    if len(kernel.shape) != 2 or len(x.shape) < 2:
        return DECLINED
    operands = [x, kernel]
    if bias is not None:
        operands.append(Known(bias.numpy().reshape(1, -1), bias.name))
    fused = {"activation": activation} if activation else {}
    return ctx.emit("linear", *operands, core_grid="full", **fused)


@lowers("moejax.time_linear")
def time_linear(ctx: Context, x, kernel, bias=None):
    if not _all_known(kernel, bias):
        return DECLINED
    weight = Known(np.ascontiguousarray(kernel.numpy().T)[None], kernel.name)
    return _add_time_bias(ctx, ctx.emit("matmul", weight, x), bias)


def _add_time_bias(ctx: Context, y: Operand, bias: Known | None) -> Operand:
    if bias is None:
        return y
    return ctx.emit("add", y, Known(bias.numpy()[None, :, None], bias.name))


@lowers("moejax.moving_average")
def moving_average(ctx: Context, x, *, kernel_size):
    """One product with a constant matrix that repeats the edges."""
    return time_product(ctx, moving_average_matrix(x.shape[1], kernel_size).T, x)


@lowers("moejax.decomposed_linear")
def decomposed_linear(ctx: Context, x, seasonal, seasonal_bias, trend, trend_bias, *, kernel_size):
    """The moving average folded into one kernel, on the host in float64.

    With the moving average M: (x - M x) Ws + (M x) Wt = x (Ws + M^T (Wt - Ws)).
    """
    if not _all_known(seasonal, seasonal_bias, trend, trend_bias):
        return DECLINED
    ctx.note("moving average M folded into the kernel: x (Ws + M^T (Wt - Ws)) + bs + bt")
    average = moving_average_matrix(x.shape[1], kernel_size)
    seasonal_SQ = seasonal.numpy().astype(np.float64)
    folded = seasonal_SQ + average.T @ (trend.numpy().astype(np.float64) - seasonal_SQ)
    prefix = seasonal.name.rsplit(".", 2)[0] if seasonal.name.count(".") > 1 else "folded"
    weight = Known(folded.T[None].astype(np.float32), f"{prefix}.kernel")
    bias = Known(seasonal_bias.numpy() + trend_bias.numpy(), f"{prefix}.bias")
    return _add_time_bias(ctx, ctx.emit("matmul", weight, x), bias)


@lowers("moejax.softmax")
def softmax(ctx: Context, x, *, axis):
    return ctx.emit("softmax", x, dim=axis % len(x.shape), numeric_stable=True)


@lowers("moejax.mixture")
def mixture(ctx: Context, heads, gate):
    """The weighted sum over experts as one product with a constant 0/1 matrix.

    ttnn sums over an outer axis in four programs; the product takes one, but cuts float32 operands
    to 10 mantissa bits, so the float32 policy keeps the plain sum.
    """
    if ctx.policy == "float32":
        return DECLINED
    batch, experts, steps, channels = heads.shape
    ctx.note("sum over experts as a product with stacked identity matrices")
    weighted = ctx.reshape(binary_broadcast(ctx, heads, gate), (batch, experts * steps, channels))
    pick = np.tile(np.eye(steps, dtype=np.float32), (1, experts))
    return ctx.emit("matmul", Known(pick[None], "mixture.sum"), weighted)


def binary_broadcast(ctx: Context, a: Operand, b: Operand) -> Operand:
    """a * b where b's unit axes repeat."""
    return ctx.emit("multiply", narrow(a), narrow(b))


def _mean_and_variance(ctx: Context, x: Operand) -> tuple[Operand, Operand]:
    """Over time, kept as [B, 1, C]; population variance."""
    mean = ctx.emit("mean", x, dim=1, keepdim=True)
    return mean, ctx.emit("var", x, dim=1, keepdim=True, correction=False)


@lowers("moejax.revin_stats")
def revin_stats(ctx: Context, x, *, eps):
    mean, variance = _mean_and_variance(ctx, x)
    return mean, ctx.emit("sqrt", ctx.emit("add", variance, scalar=eps))


@lowers("moejax.revin_denorm")
def revin_denorm(ctx: Context, y, mean, std, scale, bias, *, eps):
    """Two fused multiply-adds: the affine part with host-made constants, then the statistics."""
    if not _all_known(scale, bias):
        return DECLINED
    inverse = 1 / (scale.numpy().astype(np.float64) + eps * eps)
    offset = -bias.numpy().astype(np.float64) * inverse
    factor, shift = (
        Known(array[None, None].astype(np.float32), operand.name)
        for array, operand in ((inverse, scale), (offset, bias))
    )
    return ctx.emit("addcmul", mean, ctx.emit("addcmul", shift, y, factor), std)


@lowers("moejax.window_statistics")
def window_statistics(ctx: Context, x):
    mean, variance = _mean_and_variance(ctx, x)
    std = ctx.emit("sqrt", ctx.emit("maximum", variance, scalar=1e-12))
    low, high = (ctx.emit(op, x, dim=1, keepdim=True) for op in ("min", "max"))
    return ctx.reshape(ctx.emit("concat", mean, std, low, high, dim=2), ctx.node.outputs[0].shape)
