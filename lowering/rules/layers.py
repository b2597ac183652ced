"""Device rules of the regions that transformers are made of.

Norms have ops of their own on the device, which work in TF32 or bfloat16 inside; where float32 is
asked for they decline, and the body is lowered as it is written.
"""

import numpy as np

from lowering.graph import Known
from lowering.rules.context import DECLINED, Context, Operand, lowers
from moejax.layers.gelu import CUBIC, SQRT_2_OVER_PI


def wants_float32(ctx: Context) -> bool:
    return ctx.policy == "float32" or ctx.source.float32


def _known(*operands: Operand | None) -> bool:
    return all(operand is None or isinstance(operand, Known) for operand in operands)


def _row(vector: Known) -> Known:
    return Known(vector.numpy().reshape(1, -1), vector.name)


@lowers("moejax.rms_norm")
def rms_norm(ctx: Context, x, scale=None, *, eps):
    if wants_float32(ctx) or not _known(scale):
        return DECLINED
    rows = [] if scale is None else [_row(scale)]
    return ctx.emit("rms_norm", x, *rows, epsilon=eps)


@lowers("moejax.layer_norm")
def layer_norm(ctx: Context, x, scale=None, bias=None, *, eps):
    if wants_float32(ctx) or not _known(scale, bias):
        return DECLINED
    if scale is None and bias is not None:
        scale = ctx.constant(np.ones(x.shape[-1], np.float32))
    rows = [_row(vector) for vector in (scale, bias) if vector is not None]
    return ctx.emit("layer_norm", x, *rows, epsilon=eps)


@lowers("moejax.gelu")
def gelu(ctx: Context, x, *, form):
    """The exact form has an op; the one with tanh is x * sigmoid(2u), with its u as a product."""
    if form == "exact":
        if wants_float32(ctx):
            return DECLINED
        return ctx.emit("gelu", x, fast_and_approximate_mode=False)
    linear, cubic = 2 * SQRT_2_OVER_PI, 2 * SQRT_2_OVER_PI * CUBIC
    slope = ctx.emit("multiply", ctx.emit("square", x), scalar=cubic)
    exponent = ctx.emit("multiply", x, ctx.emit("add", slope, scalar=linear))
    return ctx.emit("multiply", x, ctx.emit("sigmoid", exponent))


@lowers("moejax.rope")
def rope(ctx: Context, x, cos, sin, *, interleaved):
    """x * cos + (x @ R) * sin, where R turns each pair of features by a quarter: R's entries are
    0, 1 and -1, which is exact in bfloat16 and not in the TF32 of float32 products.
    """
    head, width = x.shape[-1], cos.shape[-1]
    if wants_float32(ctx):
        return DECLINED
    turn = np.zeros((head, head), np.float32)
    pairs = np.arange(width).reshape(-1, 2) if interleaved else np.arange(width).reshape(2, -1).T
    turn[pairs[:, 1], pairs[:, 0]], turn[pairs[:, 0], pairs[:, 1]] = -1, 1
    turned = ctx.emit("matmul", x, Known(turn, "rope.turn"))
    cos, sin = _table(ctx, cos, x, 1), _table(ctx, sin, x, 0)
    return ctx.emit("addcmul", ctx.emit("multiply", x, cos), turned, sin)


def _table(ctx: Context, table: Operand, x: Operand, fill: float) -> Operand:
    """Of x's rank and width; features that do not turn are filled up."""
    if isinstance(table, Known):
        rest = [(0, 0)] * (len(table.shape) - 1) + [(0, x.shape[-1] - table.shape[-1])]
        table = Known(np.pad(table.numpy(), rest, constant_values=fill), table.name)
    elif table.shape[-1] < x.shape[-1]:
        rest = ((0, 0),) * (len(table.shape) - 1) + ((0, x.shape[-1] - table.shape[-1]),)
        table = ctx.emit("pad", table, padding=rest, value=float(fill))
    return ctx.reshape(table, (1,) * (len(x.shape) - len(table.shape)) + tuple(table.shape))
