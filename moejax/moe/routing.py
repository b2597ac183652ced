"""Routing: which experts serve a token, and with what weight. Pure functions of the logits.

Letters as in assignment.py. STRATEGIES is the one table of ways to choose.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moejax.kernels.split_dot import split_dot
from moejax.layers.softmax import softmax
from moejax.moe.assignment import TINY_SUM, Routing, SoftRouting
from moejax.moe.config import RoutingConfig
from moejax.regions import region

# The square of a logit of this size is still finite in float32.
LARGEST_LOGIT = 1e18


def router_logits(
    x_TD: jax.Array, kernel_DM: jax.Array, *, jitter: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
    """x @ kernel in float32 whatever the inputs are: [T, D] -> [T, M].

    With a key the input is multiplied by U(1 - jitter, 1 + jitter).
    """
    kernel_DM = kernel_DM.astype(jnp.float32)
    exact = key is None or jitter <= 0
    if exact and x_TD.dtype == jnp.bfloat16 and jax.default_backend() == "gpu":
        return split_dot(x_TD, kernel_DM)
    x_TD = x_TD.astype(jnp.float32)
    if key is not None and jitter > 0:
        x_TD = x_TD * jax.random.uniform(key, x_TD.shape, minval=1 - jitter, maxval=1 + jitter)
    return jnp.dot(x_TD, kernel_DM, precision=lax.Precision.HIGHEST)


def route(
    logits_TM: jax.Array,
    config: RoutingConfig,
    *,
    bias_M: jax.Array | None = None,
    mask_T: jax.Array | None = None,
    key: jax.Array | None = None,
    capacity: int | None = None,
    num_groups: int = 1,
) -> Routing:
    """Choose experts by the config's strategy.

    `mask` is true for tokens that count. A token with a NaN among its logits is treated as
    padding: no expert, no place, no loss (`Routing.valid` tells); logits are clipped to +-1e18.
    `key`, given in training, draws jitter and second experts. `capacity`, the tokens an expert
    takes from each of `num_groups` groups, is for expert choice only. ValueError for shapes that
    do not fit the config.
    """
    if config.strategy == "soft":
        raise ValueError("strategy 'soft' chooses no experts; use soft_route")
    if logits_TM.shape[-1] != config.num_outputs:
        raise ValueError(
            f"logits have shape {logits_TM.shape}; this router needs [T, {config.num_outputs}]"
        )
    logits_TM, valid_T = _prepare(logits_TM, mask_T, num_groups)
    if key is not None and config.logit_jitter > 0:
        noise_key, key = jax.random.split(key)
        logits_TM += config.logit_jitter * jax.random.normal(noise_key, logits_TM.shape)
    options = {"bias_M": bias_M, "key": key, "capacity": capacity, "num_groups": num_groups}
    return STRATEGIES[config.strategy](logits_TM, valid_T, config, **options)


def soft_route(
    logits_TN: jax.Array,
    config: RoutingConfig,
    *,
    mask_T: jax.Array | None = None,
    num_groups: int = 1,
) -> SoftRouting:
    """Soft MoE over groups of consecutive tokens; N = E * slots_per_expert, expert-major."""
    expected = config.num_experts * config.slots_per_expert
    if logits_TN.shape[-1] != expected:
        raise ValueError(f"logits have shape {logits_TN.shape}; this router needs [T, {expected}]")
    logits_TN, valid_T = _prepare(logits_TN, mask_T, num_groups)
    return STRATEGIES["soft"](logits_TN, valid_T, config, num_groups=num_groups)


def _prepare(logits_TM: jax.Array, mask_T: jax.Array | None, num_groups: int):
    """Finite float32 logits, and which tokens count."""
    if logits_TM.ndim != 2 or logits_TM.shape[0] % num_groups:
        raise ValueError(f"logits {logits_TM.shape} are no [T, M] of {num_groups} equal groups")
    logits_TM, valid_T = finite_logits(logits_TM.astype(jnp.float32))
    return logits_TM, valid_T if mask_T is None else valid_T & mask_T.astype(bool)


@region("moejax.finite_logits", float32=True)
def finite_logits(logits_TM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits clipped to +-1e18, and 0 in the rows with a NaN; and [T] bool, False for those."""
    valid_T = ~jnp.any(jnp.isnan(logits_TM), axis=-1)
    logits_TM = jnp.where(valid_T[:, None], logits_TM, 0.0)
    return jnp.clip(logits_TM, -LARGEST_LOGIT, LARGEST_LOGIT), valid_T


@region("moejax.top_k_router", float32=True)
def top_k_router(
    logits_TM: jax.Array,
    bias_M: jax.Array | None = None,
    *,
    k: int,
    score: str = "softmax",
    normalise: bool = True,
    scale: float = 1.0,
    num_groups: int = 1,
    top_groups: int = 1,
    group_best: int = 1,
    num_free: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(index [T, k] int32, weight [T, k], scores [T, M]): the k best of the scores + bias.

    The bias has a say in the choice only. With groups the choice is among the `top_groups` groups
    whose `group_best` best experts have the largest sum, and the last `num_free` outputs, which
    belong to none. Of equals the lowest index wins.
    """
    scores_TM = score_tokens(logits_TM, score)
    if bias_M is None and num_groups == 1:
        weight_Tk, index_Tk = lax.top_k(scores_TM, k)
    else:
        choice_TM = lax.stop_gradient(scores_TM)
        if bias_M is not None:
            choice_TM = choice_TM + lax.stop_gradient(bias_M)[None, :]
        if num_groups > 1:
            groups = num_groups, top_groups, group_best
            num_experts = choice_TM.shape[1] - num_free
            choice_TE = _within_best_groups(choice_TM[:, :num_experts], *groups)
            free = [choice_TM[:, num_experts:]] if num_free else []
            choice_TM = jnp.concatenate([choice_TE, *free], axis=-1)
        index_Tk = lax.top_k(choice_TM, k)[1]
        weight_Tk = jnp.take_along_axis(scores_TM, index_Tk, axis=-1)
    return index_Tk, _finish(weight_Tk, score, normalise, scale), scores_TM


def score_tokens(logits_TM: jax.Array, score: str) -> jax.Array:
    """Scores [T, M] of float32 logits: softmax, sigmoid, or the logits themselves."""
    if score == "softmax":
        return softmax(logits_TM, axis=-1)
    return jax.nn.sigmoid(logits_TM) if score == "sigmoid" else logits_TM


def _finish(weight_Tk: jax.Array, score: str, normalise: bool, scale: float) -> jax.Array:
    if normalise and score == "identity":
        weight_Tk = softmax(weight_Tk, axis=-1)
    elif normalise:
        weight_Tk = weight_Tk / (jnp.sum(weight_Tk, axis=-1, keepdims=True) + TINY_SUM)
    return weight_Tk if scale == 1.0 else weight_Tk * scale


def _within_best_groups(choice_TE, num_groups: int, top_groups: int, group_best: int):
    """Scores with -inf outside the best groups, whatever the sign of the scores."""
    num_tokens, num_experts = choice_TE.shape
    grouped = choice_TE.reshape(num_tokens, num_groups, num_experts // num_groups)
    group_TG = jnp.sum(lax.top_k(grouped, group_best)[0], axis=-1)
    best = lax.top_k(group_TG, top_groups)[1]
    allowed = jnp.any(best[:, :, None] == jnp.arange(num_groups)[None, None, :], axis=1)
    return jnp.where(allowed[:, :, None], grouped, -jnp.inf).reshape(choice_TE.shape)


def _top_k(logits_TM, valid_T, config: RoutingConfig, *, bias_M, group_best: int, **_) -> Routing:
    """The k best scores, of all experts or of those in the best groups."""
    if bias_M is not None and not config.has_bias:
        raise ValueError("a bias is given; set use_bias=True to let it take part in the choice")
    index_Tk, weight_Tk, scores_TM = top_k_router(
        logits_TM,
        bias_M,
        k=config.top_k,
        score=config.score,
        normalise=config.normalise,
        scale=config.scale,
        num_groups=config.num_groups,
        top_groups=config.top_groups,
        group_best=group_best,
        num_free=len(config.free_experts) if config.num_groups > 1 else 0,
    )
    keep_Tk = jnp.broadcast_to(valid_T[:, None], index_Tk.shape)
    return Routing(index_Tk, weight_Tk, keep_Tk, logits_TM, scores_TM, valid_T, config.num_experts)


def _top_2(logits_TM, valid_T, config: RoutingConfig, *, key, **_) -> Routing:
    """GShard and NLLB: the best, then the best of the rest by the second-expert policy."""
    scores_TM = softmax(logits_TM, axis=-1)
    first_T = jnp.argmax(scores_TM, axis=-1)
    contest_TM = lax.stop_gradient(logits_TM)
    if key is not None and config.second_expert == "sampling":
        contest_TM = contest_TM + jax.random.gumbel(key, contest_TM.shape)
    is_first = first_T[:, None] == jnp.arange(logits_TM.shape[-1])[None, :]
    second_T = jnp.argmax(jnp.where(is_first, -jnp.inf, contest_TM), axis=-1)
    index_Tk = jnp.stack([first_T, second_T], axis=-1).astype(jnp.int32)
    weight_Tk = jnp.take_along_axis(scores_TM, index_Tk, axis=-1)
    keep_Tk = jnp.broadcast_to(valid_T[:, None], index_Tk.shape)
    if key is not None and config.second_expert == "random":
        wanted_T = 2 * weight_Tk[:, 1] > jax.random.uniform(key, valid_T.shape)
        keep_Tk = keep_Tk & jnp.stack([jnp.ones_like(wanted_T), wanted_T], axis=-1)
    weight_Tk = _finish(weight_Tk, "softmax", config.normalise, config.scale)
    return Routing(index_Tk, weight_Tk, keep_Tk, logits_TM, scores_TM, valid_T, config.num_experts)


def _expert_choice(
    logits_TE, valid_T, config: RoutingConfig, *, capacity, num_groups: int, **_
) -> Routing:
    """Each expert takes the tokens of a group that score best: all experts are 'chosen' by every
    token, and kept where the expert chose it. The weight is the score.
    """
    num_tokens, num_experts = logits_TE.shape
    group_size = num_tokens // num_groups
    if capacity is None or not 0 < capacity <= max(group_size, 1):
        raise ValueError(
            f"capacity is {capacity}; expert choice needs the tokens an expert takes from each"
            f" group of {group_size}: 1 to {group_size}"
        )
    scores_TE = score_tokens(logits_TE, config.score)
    contest_TE = jnp.where(valid_T[:, None], lax.stop_gradient(scores_TE), -jnp.inf)
    contest_GSE = contest_TE.reshape(num_groups, group_size, num_experts)
    # the rank of every token in every expert's column; of equals the earlier token comes first
    order_GSE = jnp.argsort(-contest_GSE, axis=1, stable=True)
    position_TE = jnp.argsort(order_GSE, axis=1).reshape(num_tokens, num_experts)
    keep_TE = (position_TE < capacity) & valid_T[:, None]
    return Routing(
        index=jnp.broadcast_to(jnp.arange(num_experts, dtype=jnp.int32)[None], logits_TE.shape),
        weight=scores_TE * config.scale,
        keep=keep_TE,
        logits=logits_TE,
        scores=scores_TE,
        valid=valid_T,
        num_experts=num_experts,
        position=jnp.where(valid_T[:, None], position_TE, -1).astype(jnp.int32),
        capacity=capacity,
        num_groups=num_groups,
    )


def _soft(logits_TN, valid_T, config: RoutingConfig, *, num_groups: int, **_) -> SoftRouting:
    """Soft MoE: softmax over a group's tokens to fill slots, softmax over slots to empty them."""
    logits_GSN = logits_TN.reshape(num_groups, -1, logits_TN.shape[-1])
    valid_GS1 = valid_T.reshape(num_groups, -1, 1)
    combine_GSN = jnp.where(valid_GS1, softmax(logits_GSN, axis=-1) * config.scale, 0.0)
    if logits_GSN.shape[1] == 0:
        return SoftRouting(combine_GSN, combine_GSN)
    masked_GSN = jnp.where(valid_GS1, logits_GSN, -10 * LARGEST_LOGIT)
    return SoftRouting(jnp.where(valid_GS1, softmax(masked_GSN, axis=1), 0.0), combine_GSN)


STRATEGIES: dict[str, Callable[..., Any]] = {
    "greedy": partial(_top_k, group_best=1),
    "group_limited_greedy": partial(_top_k, group_best=1),
    "noaux_tc": partial(_top_k, group_best=2),
    "top_2": _top_2,
    "expert_choice": _expert_choice,
    "soft": _soft,
}
