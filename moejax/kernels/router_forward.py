"""Forward kernel of the fused router: one read of the logits gives everything but queue offsets.

Letters as in tiles.py, and Q queues of an expert, N programs (spans) of a token group.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moejax.kernels.plan import SPAN_BITS, TILE_BITS, TILE_SLOTS, RouterPlan
from moejax.kernels.tiles import (
    NO_KEY,
    Tile,
    finish_weights,
    iota,
    key_value,
    score_tile,
    sort_key,
    take_best,
)


def choose(
    plan: RouterPlan, logits_GSM: jax.Array, bias_M: jax.Array | None, mask_GS: jax.Array | None
) -> dict[str, jax.Array]:
    """Experts and weights for G groups of S tokens.

    Returns index, weight [G, S, k], valid [G, S] bool, table [G, N, Q, L] int8 (the
    choices of each span by queue and column) and, if the plan says so, scores [G, S, M].
    """
    groups, tokens, width = logits_GSM.shape
    row = pl.BlockSpec((None, plan.rows), lambda g, n: (g, n))
    wide, narrow = (
        pl.BlockSpec((None, plan.rows, size), lambda g, n: (g, n, 0))
        for size in (width if plan.padded_groups else plan.columns, plan.slots)
    )
    table = pl.BlockSpec((None, None, plan.queues, plan.columns), lambda g, n: (g, n, 0, 0))
    inputs = {"logits": (logits_GSM, wide)}
    if bias_M is not None:
        bias_L = bias_M[jnp.minimum(plan.output_of(jnp.arange(plan.columns)), width - 1)]
        inputs["bias"] = (bias_L.astype(jnp.float32), pl.BlockSpec((plan.columns,), lambda g, n: 0))
    if mask_GS is not None:
        inputs["mask"] = (mask_GS.astype(jnp.int32), row)
    outputs = {
        "index": ((groups, tokens, plan.top_k), jnp.int32, narrow),
        "weight": ((groups, tokens, plan.top_k), jnp.float32, narrow),
        "scores": ((groups, tokens, width), jnp.float32, wide),
        "valid": ((groups, tokens), jnp.bool_, row),
        "table": ((groups, plan.spans, plan.queues, plan.columns), jnp.int8, table),
    }
    names = (*inputs, *outputs)
    values = pl.pallas_call(
        lambda *refs: _program(plan, **dict(zip(names, refs, strict=True))),
        grid=(groups, plan.spans),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for *_, spec in outputs.values()],
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs.values()],
        compiler_params=plgpu.CompilerParams(num_warps=plan.warps, num_stages=1),
        interpret=plan.interpret,
        name="moejax_router",
    )(*(array for array, _ in inputs.values()))
    return dict(zip(outputs, values, strict=True))


def _program(plan: RouterPlan, *, table, **refs):
    """One program: choose for the tiles of a span in turn, and count the choices."""
    first = pl.program_id(1) * plan.span * plan.block
    counters = 2 * plan.words if plan.slot_queues else 1
    chosen = (jnp.zeros((plan.block, plan.columns), jnp.int32),) * counters

    def choose_tile(step, chosen):
        return _choose_tile(plan, Tile(plan, refs, step * plan.block, first), chosen)

    if plan.span == 1:
        chosen = choose_tile(0, chosen)
    else:
        chosen = lax.fori_loop(0, plan.span, choose_tile, chosen)
    for queue, length_L in enumerate(_queue_lengths(plan, chosen)):
        table[queue, :] = length_L.astype(jnp.int8)


def _choose_tile(plan: RouterPlan, tile: Tile, chosen):
    """Choose for B tokens; returns the span's counters `chosen` [B, L] with theirs added."""
    column_BL = iota((plan.block, plan.columns), 1)
    x_BL, clean_B = tile.logits()
    valid_B = clean_B & tile.unmasked()
    scores_BL = score_tile(plan, x_BL, column_BL)
    tile.store_wide("scores", scores_BL)
    words, index_BK, weight_BK = _take_slots(plan, tile.refs, x_BL, scores_BL, column_BL)
    tile.store_row("valid", valid_B)
    tile.store_narrow("index", plan.output_of(index_BK))
    tile.store_narrow("weight", finish_weights(plan, weight_BK))
    words = [jnp.where(valid_B[:, None], word_BL, 0) for word_BL in words]
    if plan.slot_queues:
        fields = 0x0F0F0F0F
        words = [half for w in words for half in (w & fields, (w >> TILE_BITS) & fields)]
    return tuple(old_BL + new_BL for old_BL, new_BL in zip(chosen, words, strict=True))


def _queue_lengths(plan: RouterPlan, chosen):
    """[L] choices of each queue in a span."""
    chosen = [jnp.sum(counter_BL, axis=0) for counter_BL in chosen]
    if not plan.slot_queues:
        return chosen
    lengths_QL = []
    for slot in range(plan.top_k):
        word, field = divmod(slot, TILE_SLOTS)
        counters_L = chosen[2 * word + field % 2]
        lengths_QL.append((counters_L >> (field // 2 * SPAN_BITS)) & ((1 << SPAN_BITS) - 1))
    return lengths_QL


def _take_slots(plan: RouterPlan, refs, x_BL, scores_BL, column_BL):
    """(1 in a slot's counter where it chose a column, W of [B, L]; columns and scores [B, K])."""
    choice_BL = scores_BL
    if "bias" in refs:
        choice_BL = choice_BL + refs["bias"][:][None, :]
    if plan.num_groups > 1:
        choice_BL = _within_best_groups(plan, choice_BL, column_BL)
    direct = "bias" not in refs and not plan.by_logits
    key_BL = jnp.where(plan.is_output(column_BL), sort_key(choice_BL), NO_KEY)
    words = [jnp.zeros(column_BL.shape, jnp.int32)] * plan.words
    index_BK = jnp.zeros((plan.block, plan.slots), jnp.int32)
    weight_BK = jnp.zeros((plan.block, plan.slots), jnp.float32)
    for slot in range(plan.top_k):
        best_B, column_B = take_best(key_BL, column_BL)
        hit_BL = column_BL == column_B[:, None]
        key_BL = jnp.where(hit_BL, NO_KEY, key_BL)
        if plan.by_logits and slot == 0:
            free_BL = plan.is_output(column_BL) & ~hit_BL
            # argmax, unlike top_k, takes -0.0 and 0.0 for equals
            key_BL = jnp.where(free_BL, sort_key(jnp.where(x_BL == 0, 0.0, x_BL)), NO_KEY)
        word, field = divmod(slot, TILE_SLOTS) if plan.slot_queues else (0, 0)
        one = np.uint32(1 << field * TILE_BITS).astype(np.int32)
        words[word] = jnp.where(hit_BL, one, words[word])
        index_BK = _put(index_BK, slot, column_B)
        score_B = key_value(best_B)
        if not direct:
            # a maximum of integers is one instruction a warp; a sum of floats is five
            bits_BL = lax.bitcast_convert_type(scores_BL, jnp.int32)
            bits_B = jnp.max(jnp.where(hit_BL, bits_BL, NO_KEY), axis=1)
            score_B = lax.bitcast_convert_type(bits_B, jnp.float32)
        weight_BK = _put(weight_BK, slot, score_B)
    return words, index_BK, weight_BK


def _within_best_groups(plan: RouterPlan, choice_BL, column_BL):
    """-inf outside the `top_groups` groups whose `group_best` best outputs have the largest sum."""
    shape = (plan.block, plan.columns // plan.group_columns, plan.group_columns)
    inside_BGC = iota(shape, 2)
    left_BGC = jnp.where(plan.is_output(column_BL), choice_BL, -jnp.inf).reshape(shape)
    total_BG = jnp.max(left_BGC, axis=2)
    best_BG = total_BG
    for _ in range(plan.group_best - 1):
        tied_BGC = jnp.where(left_BGC == best_BG[:, :, None], inside_BGC, plan.group_columns)
        taken_BGC = inside_BGC == jnp.min(tied_BGC, axis=2)[:, :, None]
        left_BGC = jnp.where(taken_BGC, -jnp.inf, left_BGC)
        best_BG = jnp.max(left_BGC, axis=2)
        total_BG = total_BG + best_BG
    group_BG = iota(shape[:2], 1)
    key_BG = jnp.where(group_BG < plan.num_groups, sort_key(total_BG), NO_KEY)
    allowed_BG = group_BG < 0
    for _ in range(plan.top_groups):
        hit_BG = group_BG == take_best(key_BG, group_BG)[1][:, None]
        allowed_BG = allowed_BG | hit_BG
        key_BG = jnp.where(hit_BG, NO_KEY, key_BG)
    choice_BGC = choice_BL.reshape(shape)
    return jnp.where(allowed_BG[:, :, None], choice_BGC, -jnp.inf).reshape(choice_BL.shape)


def _put(values_BK, slot: int, value_B):
    return jnp.where(iota(values_BK.shape, 1) == slot, value_B[:, None], values_BK)
