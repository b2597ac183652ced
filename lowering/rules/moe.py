"""Device rules of the MoE regions: the top-k router, its matrix of weights, all experts at once.

E experts stand side by side along one axis, [T, E * H], so each projection is one matmul and the
sum over experts happens in the accumulator of the last one: no padded expert axis, no reduction.
"""

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
    """[T, 1, k] times the one-hot rows [T, k, E]: exactly one term a place, so only the weights'
    own rounding shows. float32 is kept by the plain sum under the float32 policy.
    """
    if ctx.policy == "float32" or isinstance(index, Known):
        return DECLINED
    tokens, k = index.shape
    index = ctx.before_typecast(index)
    experts = np.arange(num_experts, dtype=np.dtype(index.dtype)).reshape(1, 1, -1)
    hits = ctx.emit("eq", ctx.reshape(index, (tokens, k, 1)), Known(experts), dtype="float32")
    rows = ctx.emit("matmul", ctx.reshape(weight, (tokens, 1, k)), hits)
    return ctx.reshape(rows, (tokens, num_experts))


@lowers("moejax.experts_dense")
def experts_dense(ctx: Context, x, combine, params):
    """Weights are spread over each expert's hidden units by a 0/1 matrix, and act on those."""
    if not all(isinstance(leaf, Known) for leaf in params.values()):
        return DECLINED
    ctx.note("experts side by side: the last matmul sums over hidden units and experts at once")
    experts, hidden, width = params["down"].shape
    h = _hidden(ctx, x, params)
    spread = np.repeat(np.eye(experts, dtype=np.float32), hidden, axis=1)
    weights = ctx.emit("matmul", combine, Known(spread, "experts.spread"))
    down = Known(params["down"].numpy().reshape(experts * hidden, width), params["down"].name)
    y = ctx.emit("matmul", ctx.emit("multiply", h, weights), down)
    if "down_bias" in params:
        y = ctx.emit("add", y, ctx.emit("matmul", combine, params["down_bias"]))
    return y


def _hidden(ctx: Context, x: Operand, params: dict[str, Known]) -> Operand:
    """Hidden values of all experts, [T, E * H]."""
    if "gate" not in params:
        return ctx.emit("gelu", _project(ctx, x, params, "up"), fast_and_approximate_mode=False)
    gate = _project(ctx, x, params, "gate", activation="silu")
    return ctx.emit("multiply", gate, _project(ctx, x, params, "up"))


def _project(ctx: Context, x: Operand, params: dict[str, Known], name: str, **fused) -> Operand:
    """x [T, D] times [D, E * H], with bias and activation in the same program."""
    kernel = params[name].numpy()
    wide = Known(np.moveaxis(kernel, 0, 1).reshape(kernel.shape[1], -1), params[name].name)
    operands = [x, wide]
    if f"{name}_bias" in params:
        bias = params[f"{name}_bias"]
        operands.append(Known(bias.numpy().reshape(1, -1), bias.name))
    return ctx.emit("linear", *operands, core_grid="full", **fused)
