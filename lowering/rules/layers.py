"""Device rules of the regions that transformers are made of.

Norms and attention have ops of their own on the device, which work in TF32 or bfloat16 inside;
where float32 is asked for they decline, and the body is lowered as it is written.
"""

import numpy as np

from lowering.graph import Known
from lowering.ir import TILE
from lowering.rules.context import DECLINED, Context, Operand, expand, lowers, uniform
from lowering.rules.elementwise import narrow
from moejax.layers.attention import EXCLUDED, causal_mask
from moejax.layers.gelu import CUBIC, SQRT_2_OVER_PI

MOST_CHUNK = 128  # queries or keys of one attention step on a core


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
    if wants_float32(ctx) or not _known(cos, sin):
        return DECLINED
    head, width = x.shape[-1], cos.shape[-1]
    rest = head - width
    turn = np.zeros((head, head), np.float32)
    pairs = np.arange(width).reshape(-1, 2) if interleaved else np.arange(width).reshape(2, -1).T
    turn[pairs[:, 1], pairs[:, 0]], turn[pairs[:, 0], pairs[:, 1]] = -1, 1
    shape = (1,) * (len(x.shape) - 2) + (cos.shape[0], head)
    full_cos, full_sin = (
        Known(np.pad(table.numpy(), [(0, 0), (0, rest)], constant_values=fill).reshape(shape))
        for table, fill in ((cos, 1), (sin, 0))
    )
    turned = ctx.emit("matmul", x, Known(turn, "rope.turn"))
    return ctx.emit("addcmul", ctx.emit("multiply", x, full_cos), turned, full_sin)


@lowers("moejax.attention")
def attention(ctx: Context, q, k, v, mask=None, bias=None, *, scale, causal):
    """One fused op where its limits hold: bfloat16, heads of whole tiles.

    Under an additive mask it counts padded keys in, so keys are padded here, and excluded.
    """
    steps, keys, width = q.shape[2], k.shape[2], q.shape[3]
    if wants_float32(ctx) or width % TILE or _known(q) or _known(k) or _known(v):
        return DECLINED
    options = {
        "scale": scale,
        "program_config": {"q_chunk_size": _chunk(steps), "k_chunk_size": _chunk(keys)},
    }
    op = "scaled_dot_product_attention"
    if causal and mask is None and bias is None and steps == keys:
        return ctx.emit(op, q, k, v, is_causal=True, **options)
    if mask is None and bias is None and not causal and keys % TILE == 0:
        return ctx.emit(op, q, k, v, is_causal=False, **options)
    added = _added_scores(ctx, mask, bias, causal, steps, keys)
    missing = -keys % TILE
    k, v = (_pad(ctx, x, ((0, 0), (0, 0), (0, missing), (0, 0)), 0.0) for x in (k, v))
    added = _pad(ctx, added, ((0, 0), (0, 0), (0, 0), (0, missing)), EXCLUDED)
    return ctx.emit(op, q, k, v, added, is_causal=False, **options)


def _chunk(size: int) -> int:
    """The largest power-of-two chunk, from one tile on, that is not longer than the padded size."""
    chunk = TILE
    while chunk < MOST_CHUNK and 2 * chunk <= -(-size // TILE) * TILE:
        chunk *= 2
    return chunk


def _added_scores(ctx: Context, mask, bias, causal: bool, steps: int, keys: int) -> Operand:
    """What is added to the scores, [B or 1, N or 1, S, T]: the bias, and EXCLUDED at no-goes."""
    added: Operand = Known(np.zeros((1, 1, 1, 1), np.float32)) if bias is None else bias
    allowed = Known(np.asarray(causal_mask(steps, keys))) if causal else None
    for condition in (mask, allowed):
        if condition is not None:
            added = _exclude(ctx, condition, added)
    shape = np.broadcast_shapes(tuple(added.shape), (1, 1, steps, keys))
    if isinstance(added, Known):
        return Known(np.broadcast_to(added.numpy(), shape), added.name)
    return expand(ctx, added, shape)


def _exclude(ctx: Context, allowed: Operand, added: Operand) -> Operand:
    if isinstance(allowed, Known) and isinstance(added, Known):
        scores = np.where(allowed.numpy(), added.numpy(), np.float32(EXCLUDED))
        return Known(scores, added.name)
    number = uniform(added)
    options = {"false_scalar": EXCLUDED}
    if number is not None:
        return ctx.emit("where", narrow(allowed), true_scalar=float(number), **options)
    return ctx.emit("where", narrow(allowed), narrow(added), **options)


def _pad(ctx: Context, x: Operand, padding, value: float) -> Operand:
    if not any(map(any, padding)):
        return x
    if isinstance(x, Known):
        return Known(np.pad(x.numpy(), padding, constant_values=value), x.name)
    return ctx.emit("pad", x, padding=padding, value=value)
