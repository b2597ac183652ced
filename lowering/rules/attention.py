"""Attention by the device's fused ops: one for many queries, one for a single step.

Both take bfloat16 and heads of whole tiles; heads of another width are padded with zeros, which add
nothing to a score. Where float32 is asked for they decline, and the body is lowered as it is
written.
"""

import numpy as np

from lowering.graph import Known
from lowering.ir import TILE
from lowering.rules.context import DECLINED, Context, Operand, expand, lowers, uniform
from lowering.rules.elementwise import narrow
from lowering.rules.layers import wants_float32
from lowering.rules.shape import slab
from moejax.layers.attention import EXCLUDED, causal_mask

MOST_CHUNK = 128  # queries or keys of one step on a core
MOST_CHUNK_NUMBERS = MOST_CHUNK * 256  # and with the width of the head


@lowers("moejax.attention")
def attention(ctx: Context, q, k, v, mask=None, bias=None, *, scale, causal):
    """Keys are padded to whole tiles and excluded: under a mask the op would count padding in."""
    if wants_float32(ctx) or any(isinstance(x, Known) for x in (q, k, v)):
        return DECLINED
    (steps, width), value_width = q.shape[2:], v.shape[3]
    if ctx.is_head_of(v, k):
        v = k  # the result's further features are cut off, and nothing is padded
    whole = -(-max(width, value_width) // TILE) * TILE
    q, k, v = (_pad(ctx, x, 3, whole) for x in (q, k, v))
    run = _one_step if steps == 1 else _many_steps
    y = run(ctx, q, k, v, mask, bias, scale, causal and steps > 1)  # one query sees all keys
    return slab(ctx, y, 3, 0, value_width)


def _many_steps(ctx: Context, q, k, v, mask, bias, scale: float, causal: bool) -> Operand:
    op, steps, keys = "scaled_dot_product_attention", q.shape[2], k.shape[2]
    options = {"scale": scale, "program_config": _chunks(steps, keys, q.shape[3])}
    if causal and mask is None and bias is None and steps == keys:
        return ctx.emit(op, q, k, v, is_causal=True, **options)
    if mask is None and bias is None and not causal and keys % TILE == 0:
        return ctx.emit(op, q, k, v, is_causal=False, **options)
    allowed = Known(np.asarray(causal_mask(steps, keys))) if causal else None
    added = _added_scores(ctx, (allowed, mask), bias, (1, 1, steps, keys))
    k, v, added = _whole_keys(ctx, k, v, added)
    return ctx.emit(op, q, k, v, added, is_causal=False, **options)


def _one_step(ctx: Context, q, k, v, mask, bias, scale: float, _) -> Operand:
    """All heads of a sequence are the rows of one tile; what is added is scaled with the scores."""
    batch, heads, _, width = q.shape
    none = Known(np.zeros((batch, 1, heads, 1), np.float32))  # the mask needs a row a head
    mask, bias = (_heads_last(ctx, x) for x in (mask, _over(ctx, bias, scale)))
    added = _added_scores(ctx, (mask,), bias, (batch, 1, heads, k.shape[2]), none)
    k, v, added = _whole_keys(ctx, k, v, added)
    options = {"scale": scale, "program_config": _chunks(1, k.shape[2], width, divide=True)}
    queries = ctx.permute(q, (2, 0, 1, 3))
    op = "scaled_dot_product_attention_decode"
    y = ctx.emit(op, queries, k, v, added, is_causal=False, **options)
    return ctx.permute(y, (1, 2, 0, 3))


def _over(ctx: Context, bias: Operand | None, scale: float) -> Operand | None:
    """bias / scale."""
    if bias is None or scale == 1:
        return bias
    if isinstance(bias, Known):
        return Known(bias.numpy() / np.float32(scale), bias.name)
    return ctx.emit("multiply", bias, scalar=1 / scale)


def _heads_last(ctx: Context, x: Operand | None) -> Operand | None:
    """[B, N, 1, T] -> [B, 1, N, T]."""
    return None if x is None else ctx.permute(x, (0, 2, 1, 3))


def _chunks(steps: int, keys: int, width: int, *, divide: bool = False) -> dict[str, int]:
    return {
        "q_chunk_size": _chunk(steps, width),
        "k_chunk_size": _chunk(keys, width, divide=divide),
    }


def _chunk(size: int, width: int, *, divide: bool = False) -> int:
    """The largest power-of-two chunk, from one tile on, that is not longer than the padded size;
    with `divide`, one that it is a multiple of.
    """
    chunk, padded = TILE, -(-size // TILE) * TILE
    most = min(MOST_CHUNK, MOST_CHUNK_NUMBERS // width, padded)
    while 2 * chunk <= most and not (divide and padded % (2 * chunk)):
        chunk *= 2
    return chunk


def _added_scores(ctx: Context, conditions, bias, shape, none: Known | None = None) -> Operand:
    """What is added to the scores: the bias, or `none`, and EXCLUDED at no-goes; known ones first.

    As large as `shape`; its first two axes may stay 1.
    """
    added: Operand = bias or none or Known(np.zeros((1, 1, 1, 1), np.float32))
    given = [condition for condition in conditions if condition is not None]
    for condition in sorted(given, key=lambda x: not isinstance(x, Known)):
        added = _exclude(ctx, condition, added, scalar=none is None)
    shape = np.broadcast_shapes(tuple(added.shape), shape)
    if isinstance(added, Known):
        return Known(np.broadcast_to(added.numpy(), shape), added.name)
    return expand(ctx, added, shape)


def _exclude(ctx: Context, allowed: Operand, added: Operand, *, scalar: bool) -> Operand:
    if isinstance(allowed, Known) and isinstance(added, Known):
        scores = np.where(allowed.numpy(), added.numpy(), np.float32(EXCLUDED))
        return Known(scores, added.name)
    number = uniform(added) if scalar else None
    if number is not None:
        return ctx.emit("where", narrow(allowed), true_scalar=float(number), false_scalar=EXCLUDED)
    kept = narrow(added) if scalar else added
    return ctx.emit("where", narrow(allowed), kept, false_scalar=EXCLUDED)


def _whole_keys(ctx: Context, k, v, added) -> tuple[Operand, Operand, Operand]:
    keys = -(-k.shape[2] // TILE) * TILE
    return _pad(ctx, k, 2, keys), _pad(ctx, v, 2, keys), _pad(ctx, added, 3, keys, EXCLUDED)


def _pad(ctx: Context, x: Operand, axis: int, size: int, value: float = 0.0) -> Operand:
    """`x` padded at the back of an axis."""
    if x.shape[axis] == size:
        return x
    padding = tuple((0, size - x.shape[axis] if i == axis else 0) for i in range(len(x.shape)))
    if isinstance(x, Known):
        return Known(np.pad(x.numpy(), padding, constant_values=value), x.name)
    return ctx.emit("pad", x, padding=padding, value=value)
