"""Backward kernel of the fused router: from weights and scores to the logits.

Letters as in plan.py. Nothing flows through the choice itself, the bias or the queues.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moejax.kernels.plan import RouterPlan
from moejax.kernels.tiles import Tile, iota, score_tile
from moejax.moe.assignment import TINY_SUM
from moejax.moe.routing import LARGEST_LOGIT


def logits_gradient(
    plan: RouterPlan,
    logits_GSM: jax.Array,
    index_GSk: jax.Array,
    weight_bar_GSk: jax.Array,
    scores_bar_GSM: jax.Array | None,
) -> jax.Array:
    """[G, S, M] in the dtype of the logits; 0 for tokens with a NaN and for clipped logits."""
    groups, _, width = logits_GSM.shape
    wide, narrow = (
        pl.BlockSpec((None, plan.rows, size), lambda g, n: (g, n, 0))
        for size in (width if plan.padded_groups else plan.columns, plan.slots)
    )
    inputs = {
        "logits": (logits_GSM, wide),
        "index": (index_GSk, narrow),
        "weight_bar": (weight_bar_GSk, narrow),
    }
    if scores_bar_GSM is not None:
        inputs["scores_bar"] = (scores_bar_GSM, wide)
    names = (*inputs, "logits_bar")
    return pl.pallas_call(
        lambda *refs: _program(plan, dict(zip(names, refs, strict=True))),
        grid=(groups, plan.spans),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=wide,
        out_shape=jax.ShapeDtypeStruct(logits_GSM.shape, logits_GSM.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=plan.warps, num_stages=1),
        interpret=plan.interpret,
        name="moejax_router_gradient",
    )(*(array for array, _ in inputs.values()))


def _program(plan: RouterPlan, refs):
    first = pl.program_id(1) * plan.span * plan.block

    def tile(step, carry):
        _differentiate(plan, Tile(plan, refs, step * plan.block, first))
        return carry

    lax.fori_loop(0, plan.span, tile, 0)


def _differentiate(plan: RouterPlan, tile: Tile):
    column_BL = iota((plan.block, plan.columns), 1)
    raw_BL = tile.load_wide("logits")
    x_BL, clean_B = tile.logits()
    scores_BL = score_tile(plan, x_BL, column_BL)
    chosen_BK = plan.column_of(tile.load_narrow("index"))
    slot_BK = iota(chosen_BK.shape, 1)
    score_BK = jnp.zeros(chosen_BK.shape, jnp.float32)
    column_Bk = []
    for slot in range(plan.top_k):
        column_Bk.append(jnp.max(jnp.where(slot_BK == slot, chosen_BK, 0), axis=1))
        hit_BL = column_BL == column_Bk[slot][:, None]
        score_B = jnp.sum(jnp.where(hit_BL, scores_BL, 0.0), axis=1)
        score_BK = jnp.where(slot_BK == slot, score_B[:, None], score_BK)
    score_bar_BK = _weights_gradient(plan, score_BK, tile.load_narrow("weight_bar"))
    bar_BL = jnp.zeros(x_BL.shape, jnp.float32)
    if "scores_bar" in tile.refs:
        bar_BL = tile.load_wide("scores_bar")
    for slot in range(plan.top_k):
        score_bar_B = jnp.sum(jnp.where(slot_BK == slot, score_bar_BK, 0.0), axis=1)
        hit_BL = column_BL == column_Bk[slot][:, None]
        bar_BL = bar_BL + jnp.where(hit_BL, score_bar_B[:, None], 0.0)
    if plan.score == "softmax":
        bar_BL = scores_BL * (bar_BL - jnp.sum(bar_BL * scores_BL, axis=1)[:, None])
    elif plan.score == "sigmoid":
        bar_BL = bar_BL * scores_BL * (1.0 - scores_BL)
    kept_BL = clean_B[:, None] & (jnp.abs(raw_BL) <= LARGEST_LOGIT)
    tile.store_wide("logits_bar", jnp.where(kept_BL, bar_BL, 0.0))


def _weights_gradient(plan: RouterPlan, score_BK: jax.Array, weight_bar_BK: jax.Array):
    """Gradient of the chosen scores, through normalisation and scale."""
    bar_BK = weight_bar_BK * plan.scale
    if not plan.normalise:
        return bar_BK
    if plan.score == "identity":
        inside_BK = iota(score_BK.shape, 1) < plan.top_k
        score_BK = jnp.where(inside_BK, score_BK, -jnp.inf)
        share_BK = jnp.exp(score_BK - jnp.max(score_BK, axis=1)[:, None])
        share_BK = share_BK / jnp.sum(share_BK, axis=1)[:, None]
        return share_BK * (bar_BK - jnp.sum(bar_BK * share_BK, axis=1)[:, None])
    total_B1 = jnp.sum(score_BK, axis=1)[:, None] + TINY_SUM
    mean_B1 = jnp.sum(bar_BK * score_BK, axis=1)[:, None] / total_B1
    return (bar_BK - mean_B1) / total_B1
