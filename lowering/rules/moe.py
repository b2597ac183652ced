"""Device rules of the router's regions: finite logits, the k best, their matrix of weights."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from lowering.graph import Known
from lowering.rules.context import DECLINED, Context, Operand, lowers

TINY_SUM = 1e-18  # the layer adds it to sums of scores


@lowers("moejax.finite_logits")
def finite_logits(ctx: Context, logits):
    """As they are: the device keeps no NaN that could be told from infinity."""
    return logits, Known(np.ones(logits.shape[0], bool))


@lowers("moejax.centroid_distance")
def centroid_distance(ctx: Context, x, centroids):
    """sqrt(|x|^2 + |c|^2 - 2 x.c): the factor -2 is in the matrix, which loses nothing, and the
    squares are summed outside of the product, whose operands are cut to 10 mantissa bits.
    """
    if not isinstance(centroids, Known):
        return DECLINED
    points = centroids.numpy().astype(np.float64)
    crossed = Known(np.float32(-2 * points.T), centroids.name)
    squares = Known(np.float32(np.square(points).sum(axis=1))[None], centroids.name)
    dot = ctx.emit("matmul", x, crossed, dtype="float32")
    own = ctx.emit("sum", ctx.emit("square", x), dim=1, keepdim=True)
    square = ctx.emit("relu", ctx.emit("add", ctx.emit("add", own, squares), dot))
    return ctx.emit("sqrt", square)


@lowers("moejax.top_k_router")
def top_k_router(
    ctx: Context,
    logits,
    bias=None,
    *,
    k,
    score,
    normalise,
    scale,
    num_groups,
    top_groups,
    group_best,
    num_free,
):
    """Renormalised softmax scores, or the logits themselves: the k largest logits, and a softmax
    over them alone.

    With a bias or groups: the k largest of what takes part, and the scores there.
    """
    if bias is not None or num_groups > 1:
        groups = (num_groups, top_groups, group_best, num_free) if num_groups > 1 else None
        weights, indices, scores = _best_scores(ctx, logits, bias, k, score, groups)
        if normalise:
            weights = _normalised(ctx, weights, score)
    elif score == "softmax" and normalise:
        values, indices = _top_k(ctx, logits, k)
        weights = ctx.emit("softmax", values, dim=1, numeric_stable=True)
        scores = ctx.emit("softmax", logits, dim=1, numeric_stable=True)
    elif score == "identity" and normalise:
        (values, indices), scores = _top_k(ctx, logits, k), logits
        weights = ctx.emit("softmax", _shifted(ctx, values), dim=1, numeric_stable=True)
    else:
        return DECLINED
    if scale != 1:
        weights = ctx.emit("multiply", weights, scalar=scale)
    return ctx.convert(indices, "int32"), weights, scores


def _top_k(ctx: Context, x: Operand, k: int) -> tuple[Operand, ...]:
    """Values and indices; of equals the lowest index."""
    return ctx.emit_many("topk", x, k=k, dim=1, largest=True, sorted=True, stable=True)


def _shifted(ctx: Context, x: Operand) -> Operand:
    """x - max(x), exactly: softmax would cut large numbers to 10 bits before it looks at their
    differences.
    """
    return ctx.emit("subtract", x, ctx.emit("max", x, dim=1, keepdim=True))


def _best_scores(ctx: Context, logits, bias, k: int, score: str, groups) -> tuple[Operand, ...]:
    """Scores and indices of the k choices, and all scores."""
    if score == "softmax":
        scores = ctx.emit("softmax", logits, dim=1, numeric_stable=True)
    else:
        scores = ctx.emit("sigmoid", logits) if score == "sigmoid" else logits
    choice = scores
    if bias is not None:
        choice = ctx.emit("add", scores, ctx.reshape(bias, (1, bias.shape[0])))
    if groups is not None:
        (choice,) = ctx.inline(partial(_within_best_groups, groups=groups), choice)
    values, indices = _top_k(ctx, choice, k)
    return values if bias is None else ctx.emit("gather", scores, indices, dim=1), indices, scores


def _within_best_groups(choice_TM, groups: tuple[int, int, int, int]):
    """-inf outside the best groups. A group's rank is counted, not sorted: one that is as good and
    comes earlier is ahead. The outputs behind the groups are left as they are.
    """
    num_groups, top_groups, group_best, num_free = groups
    num_tokens, num_outputs = choice_TM.shape
    num_experts = num_outputs - num_free
    grouped = choice_TM[:, :num_experts].reshape(num_tokens, num_groups, -1)
    if group_best == 1:
        sum_TG1 = jnp.max(grouped, axis=2, keepdims=True)
    else:
        sum_TG1 = jnp.sum(lax.top_k(grouped, group_best)[0], axis=2, keepdims=True)
    other_T1G = sum_TG1.reshape(num_tokens, 1, num_groups)
    earlier = np.tri(num_groups, k=-1, dtype=bool)[None]
    ahead = jnp.where(earlier, other_T1G >= sum_TG1, other_T1G > sum_TG1)
    rank_TG1 = jnp.sum(ahead.astype(jnp.float32), axis=2, keepdims=True)
    chosen = jnp.where(rank_TG1 < top_groups, grouped, -jnp.inf).reshape(num_tokens, num_experts)
    return jnp.concatenate([chosen, choice_TM[:, num_experts:]], axis=1) if num_free else chosen


def _normalised(ctx: Context, weights: Operand, score: str) -> Operand:
    """Over their sum; logits by a softmax."""
    if score == "identity":
        return ctx.emit("softmax", weights, dim=1, numeric_stable=True)
    total = ctx.emit("sum", weights, dim=1, keepdim=True)
    return ctx.emit("divide", weights, ctx.emit("add", total, scalar=TINY_SUM))


@lowers("moejax.combine_weights")
def combine_weights(ctx: Context, index, weight, *, num_experts):
    """float32 is kept by the plain sum under the float32 policy."""
    if ctx.policy == "float32" or isinstance(index, Known):
        return DECLINED
    return weights_by_expert(ctx, index, weight, num_experts)


def weights_by_expert(ctx: Context, index, weight, num_experts: int) -> Operand:
    """[T, E]: [T, 1, k] times the one-hot rows [T, k, E]. Exactly one term a place, so only the
    weights' own rounding shows.
    """
    tokens, k = index.shape
    index = ctx.before_typecast(index)
    experts = np.arange(num_experts, dtype=np.dtype(index.dtype)).reshape(1, 1, -1)
    hits = ctx.emit("eq", ctx.reshape(index, (tokens, k, 1)), Known(experts), dtype="float32")
    rows = ctx.emit("matmul", ctx.reshape(weight, (tokens, 1, k)), hits)
    return ctx.reshape(rows, (tokens, num_experts))
