"""Device rules of the router's regions: finite logits, the k best, their matrix of weights."""

import numpy as np

from lowering.graph import Known
from lowering.rules.context import DECLINED, Context, Operand, lowers


@lowers("moejax.finite_logits")
def finite_logits(ctx: Context, logits):
    """As they are: the device keeps no NaN that could be told from infinity."""
    return logits, Known(np.ones(logits.shape[0], bool))


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
    """Renormalised softmax scores: the k largest logits, and a softmax over them alone."""
    if score != "softmax" or not normalise or bias is not None or num_groups > 1:
        return DECLINED
    values, indices = ctx.emit_many(
        "topk", logits, k=k, dim=1, largest=True, sorted=True, stable=True
    )
    weights = ctx.emit("softmax", values, dim=1, numeric_stable=True)
    if scale != 1:
        weights = ctx.emit("multiply", weights, scalar=scale)
    scores = ctx.emit("softmax", logits, dim=1, numeric_stable=True)
    return ctx.convert(indices, "int32"), weights, scores


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
