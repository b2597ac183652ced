"""The fused router: routing, counts and queue places in one read of the logits.

`fused_route` is `moejax.moe.routing.route` together with what capacity and dispatch ask for next.
The implementation "xla" is those plain functions; "pallas" (Triton, for NVIDIA GPUs) reads the
logits once. Its first kernel routes spans of tokens and counts each span's choices; a second sums
the counts of the spans before; a third, which reads only indices, compares the choices of a span in
pairs and so finds every place. Gradients have a kernel of their own. JAX has announced the end of
Pallas' Triton backend; this package is the only one that uses it.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from moejax.checks import require_choice
from moejax.kernels.plan import RouterPlan
from moejax.kernels.queues import queue_places
from moejax.kernels.router_backward import logits_gradient
from moejax.kernels.router_forward import choose
from moejax.moe.assignment import Routing
from moejax.moe.capacity import queue_order, queue_positions
from moejax.moe.config import RoutingConfig
from moejax.moe.routing import LARGEST_LOGIT, route

Implementation = Literal["xla", "pallas"]
Order = Literal["token_major", "choice_major"]

MOST_OUTPUTS = 1024
MOST_CHOICES = 16


def fused_route(
    logits_TM: jax.Array,
    config: RoutingConfig,
    *,
    bias_M: jax.Array | None = None,
    mask_T: jax.Array | None = None,
    key: jax.Array | None = None,
    num_groups: int = 1,
    order: Order = "choice_major",
    implementation: Implementation | None = None,
) -> tuple[Routing, jax.Array]:
    """(Routing with `position` filled, [M] int32 choices of each output), as `route` routes.

    Tokens queue by `order` within each of `num_groups` groups of consecutive tokens. The
    implementation None is "pallas" on a GPU for all that it can do, else "xla"; off the GPU
    "pallas" is interpreted, slowly, for tests. ValueError for what it cannot do (`why_not`), and
    for shapes that do not fit the config. The kernels are not partitioned by XLA: with sharded
    tokens call this inside `jax.shard_map`.
    """
    require_choice("order", order, ("token_major", "choice_major"))
    on_gpu = jax.default_backend() == "gpu"
    obstacle = why_not(config, logits_TM.shape[0], key)
    if implementation is None:
        implementation = "pallas" if on_gpu and obstacle is None else "xla"
    require_choice("implementation", implementation, ("xla", "pallas"))
    if implementation == "xla":
        routing = route(
            logits_TM, config, bias_M=bias_M, mask_T=mask_T, key=key, num_groups=num_groups
        )
        position_Tk = queue_positions(routing, queue_order(routing, order), num_groups)
        counts_M = routing.counts(routing.keep)
        return replace(routing, position=position_Tk, num_groups=num_groups, order=order), counts_M
    if obstacle is not None:
        raise ValueError(f"implementation 'pallas' {obstacle}; use 'xla'")
    if logits_TM.ndim != 2 or logits_TM.shape[-1] != config.num_outputs:
        raise ValueError(
            f"logits have shape {logits_TM.shape}; this router needs [T, {config.num_outputs}]"
        )
    if logits_TM.shape[0] % num_groups:
        raise ValueError(f"{logits_TM.shape[0]} tokens cannot form {num_groups} equal groups")
    plan = plan_router(
        config,
        group_tokens=logits_TM.shape[0] // num_groups,
        order=order,
        interpret=not on_gpu,
    )
    return pallas_route(plan, logits_TM, config, bias_M, mask_T)


def why_not(config: RoutingConfig, num_tokens: int, key: jax.Array | None = None) -> str | None:
    """Why the kernel cannot route so, as the end of a sentence; None if it can."""
    if config.strategy not in ("greedy", "group_limited_greedy", "noaux_tc", "top_2"):
        return f"does not know strategy {config.strategy!r}"
    if config.num_groups > 1 and config.free_experts:
        return "knows no groups beside free experts"
    if config.num_outputs > MOST_OUTPUTS or config.top_k > MOST_CHOICES:
        return (
            f"holds at most {MOST_OUTPUTS} outputs and {MOST_CHOICES} choices, not"
            f" {config.num_outputs} and {config.top_k}"
        )
    if key is not None and (config.logit_jitter > 0 or config.second_expert != "all"):
        return "draws no random numbers, which logit_jitter and second_expert need"
    return "needs at least one token" if num_tokens == 0 else None


def plan_router(
    config: RoutingConfig,
    *,
    group_tokens: int,
    order: Order = "choice_major",
    interpret: bool = False,
    **tiling: int,
) -> RouterPlan:
    """The kernels' settings; `block`, `span` and `warps` override the tiling that was measured."""
    slot_queues = order == "choice_major" and config.top_k > 1
    # One row of a tile is best held by one warp, which takes 128 columns at a time; more registers
    # than a few rows need leave too few warps to hide latency.
    columns = pl.next_power_of_2(config.num_outputs)
    block = 16 if columns <= 128 else max(1, 512 // columns)
    rows = 64 if slot_queues and columns > 128 else 32
    plan = RouterPlan(
        num_outputs=config.num_outputs,
        num_experts=config.num_experts,
        top_k=config.top_k,
        score=config.score,
        normalise=config.normalise,
        scale=config.scale,
        num_groups=config.num_groups,
        top_groups=config.top_groups,
        group_best=2 if config.strategy == "noaux_tc" else 1,
        by_logits=config.strategy == "top_2",
        slot_queues=slot_queues,
        group_tokens=group_tokens,
        block=block,
        span=rows // block,
        warps=2 if columns <= 128 else 1,
        interpret=interpret,
    )
    return replace(plan, **tiling)


def pallas_route(
    plan: RouterPlan,
    logits_TM: jax.Array,
    config: RoutingConfig,
    bias_M: jax.Array | None = None,
    mask_T: jax.Array | None = None,
) -> tuple[Routing, jax.Array]:
    """`fused_route` by the kernels, with a plan of one's own."""
    if bias_M is not None and not config.has_bias:
        raise ValueError("a bias is given; set use_bias=True to let it take part in the choice")
    tokens, width = logits_TM.shape
    groups = tokens // plan.group_tokens
    mask_GS = None if mask_T is None else mask_T.reshape(groups, -1)
    logits_GSM = logits_TM.reshape(groups, plan.group_tokens, width)
    weight, scores, index, valid, position, counts_L = _route(plan, logits_GSM, bias_M, mask_GS)
    if plan.padded_groups:
        counts_L = counts_L[plan.column_of(jnp.arange(width))]
    index_Tk = index.reshape(tokens, -1)
    valid_T = valid.reshape(tokens)
    routing = Routing(
        index=index_Tk,
        weight=weight.reshape(tokens, -1),
        keep=jnp.broadcast_to(valid_T[:, None], index_Tk.shape),
        logits=_clean(logits_TM),
        scores=scores.reshape(tokens, width),
        valid=valid_T,
        num_experts=config.num_experts,
        position=position.reshape(tokens, -1),
        num_groups=groups,
        order="choice_major" if plan.slot_queues or plan.top_k == 1 else "token_major",
    )
    return routing, counts_L[:width]


def _clean(logits_TM: jax.Array) -> jax.Array:
    """The logits as `route` keeps them; XLA leaves this out where nobody reads them."""
    logits_TM = logits_TM.astype(jnp.float32)
    logits_TM = jnp.where(jnp.any(jnp.isnan(logits_TM), axis=-1)[:, None], 0.0, logits_TM)
    return jnp.clip(logits_TM, -LARGEST_LOGIT, LARGEST_LOGIT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _route(plan: RouterPlan, logits_GSM, bias_M, mask_GS):
    """(weight, scores, index, valid, position, counts); only the first two have gradients."""
    out = choose(plan, logits_GSM, bias_M, mask_GS)
    position_GSk, counts_L = queue_places(plan, out["index"], out["valid"], out["table"])
    return out["weight"], out["scores"], out["index"], out["valid"], position_GSk, counts_L


def _route_forward(plan: RouterPlan, logits_GSM, bias_M, mask_GS):
    out = _route(plan, logits_GSM, bias_M, mask_GS)
    return out, (logits_GSM, out[2])


def _route_backward(plan: RouterPlan, residuals, bars):
    logits_GSM, index_GSk = residuals
    return logits_gradient(plan, logits_GSM, index_GSk, bars[0], bars[1]), None, None


_route.defvjp(_route_forward, _route_backward)
