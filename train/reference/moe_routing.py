"""Routing and capacity cases: routers, queues, losses and small expert layers, recomputed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.moe.assignment import Routing
from moejax.moe.balancing import update_router_state
from moejax.moe.capacity import apply_capacity
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.losses import join, routed_load_balance, z_loss
from moejax.moe.routing import route, router_logits
from train.reference.rows import Case, Computed, Findings

FORWARD = {"atol": 2e-5, "rtol": 1e-4}
LOSS = {"atol": 0.0, "rtol": 1e-5}
EXACT = {"atol": 0.0}

Parameters = dict[str, Any]
Check = Callable[[Case, Parameters], Findings]


def check_of(names: set[str], parameters: Parameters) -> Check | None:
    """The check that fits a case, or None."""
    if {"counts", "bias"} <= names:
        return _check_bias
    if "balanced_logits" in names:
        return _check_balance
    if "top1_mask" in names:
        return _check_gshard
    if {"dispatch", "prob"} <= names:
        return _check_switch
    if "order" in parameters:
        return _check_capacity
    if {"x", "weight", "combine"} <= names:
        return _check_top_k if "k" in parameters else _check_expert_choice
    return None


def routing_config(parameters: Parameters, **changes: Any) -> RoutingConfig:
    """Our settings for a case's parameters; ValueError for those that make no sense."""
    known: dict[str, Any] = {
        "num_experts": _number(parameters, "E"),
        "top_k": _number(parameters, "k", 1),
        "score": parameters.get("score", "softmax"),
        "normalise": bool(parameters.get("norm_topk_prob", False)),
        "scale": float(parameters.get("routed_scaling_factor", 1.0)),
        "free_experts": ("copy",) * _number(parameters, "zero_experts", 0),
    }
    method = parameters.get("topk_method")
    if method is None and "n_group" in parameters:
        method = "noaux_tc"
    if method is not None and method != "greedy":
        known["num_groups"] = _number(parameters, "n_group")
        known["top_groups"] = _number(parameters, "topk_group")
    known["strategy"] = method or "greedy"
    return RoutingConfig(**known | changes)


def combine_matrix(routing: Routing) -> jax.Array:
    """[T, M] final weights, 0 where an expert does not serve the token."""
    rows_Tk = jnp.arange(routing.index.shape[0])[:, None]
    return jnp.zeros_like(routing.logits).at[rows_Tk, routing.index].add(routing.kept_weight)


def _number(parameters: Parameters, name: str, default: int | None = None) -> int:
    value = parameters.get(name, default)
    if not isinstance(value, int):
        raise ValueError(f"parameter {name!r} is {value!r}; a whole number is needed")
    return value


def _logits(case: Case) -> jax.Array:
    """[T, M] of all tokens, whatever axes the case gives them."""
    x, weight = case.tensor("x"), case.tensor("weight")
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has shape {x.shape}, weight {weight.shape}; they do not fit")
    return router_logits(jnp.asarray(x).reshape(-1, x.shape[-1]), jnp.asarray(weight).T)


def _in_order_of(recorded_Tk: np.ndarray, routing: Routing) -> tuple[jax.Array, jax.Array]:
    """Chosen experts and weights with the slots of a token in the order of the recorded ones."""
    rank_Tk = jnp.argsort(jnp.argsort(jnp.asarray(recorded_Tk), axis=-1), axis=-1)
    ours_Tk = jnp.argsort(routing.index, axis=-1)
    order_Tk = jnp.take_along_axis(ours_Tk, rank_Tk, axis=-1)
    index, weight = (
        jnp.take_along_axis(a, order_Tk, axis=-1) for a in (routing.index, routing.weight)
    )
    return index, weight


def _check_top_k(case: Case, parameters: Parameters) -> Findings:
    """Top-k routers of the published models; experts of a LongCat block where recorded."""
    bias = jnp.asarray(case.tensor("bias")) if "bias" in case.tensors else None
    config = routing_config(parameters, use_bias=bias is not None)
    logits = _logits(case)
    routing = route(logits, config, bias_M=bias)
    recorded = case.tensor("index")
    if recorded.shape != routing.index.shape:
        raise ValueError(f"index has shape {recorded.shape}, ours {routing.index.shape}")
    index, weight = _in_order_of(recorded, routing)
    computed = {
        "logits": Computed(logits, **FORWARD),
        "index": Computed(index, **EXACT),
        "topk_weight": Computed(weight, **FORWARD),
        "combine": Computed(combine_matrix(routing), **FORWARD),
    }
    inputs = {"x", "weight", "bias"}
    if "output" in case.tensors:
        experts = {"gate_up_proj", "down_proj"}
        computed["output"] = Computed(_swiglu_output(case, routing), **FORWARD)
        inputs |= experts
    return Findings(computed=computed, inputs=inputs)


def _swiglu_output(case: Case, routing: Routing) -> jax.Array:
    """Output of published SwiGLU experts (gate first) and identity experts."""
    x = jnp.asarray(case.tensor("x"))
    gate, up = jnp.split(
        jnp.einsum("td,efd->etf", x, jnp.asarray(case.tensor("gate_up_proj"))), 2, axis=-1
    )
    down = jnp.asarray(case.tensor("down_proj"))
    y = jnp.einsum("etf,edf->etd", jax.nn.silu(gate) * up, down)
    combine = combine_matrix(routing)
    copied = jnp.sum(combine[:, routing.num_experts :], axis=-1, keepdims=True)
    return jnp.einsum("te,etd->td", combine[:, : routing.num_experts], y) + copied * x


def _check_capacity(case: Case, parameters: Parameters) -> Findings:
    """Queues: positions, drops and weights by order, scope and renormalisation."""
    config = routing_config(parameters, normalise=parameters["renormalise"] == "before")
    capacity = _number(parameters, "capacity")
    order: Any = parameters["order"].removesuffix("_choice_major")
    mask = jnp.asarray(case.tensor("mask"))
    importance = case.tensors.get("importance")
    wanted = route(_logits(case), config, mask_T=mask)
    routing = apply_capacity(
        wanted,
        CapacityConfig(
            minimum=capacity,
            maximum=capacity,
            scope=parameters["scope"],
            order=order,
            renormalise=parameters["renormalise"] == "after",
        ),
        num_groups=_number(parameters, "batch"),
        importance_T=None if importance is None else jnp.asarray(importance),
    )
    return Findings(
        computed={
            "index": Computed(routing.index, **EXACT),
            "position": Computed(routing.position, **EXACT),
            "keep": Computed(routing.keep, **EXACT),
            "combine": Computed(combine_matrix(routing), **FORWARD),
            "kept_per_expert": Computed(routing.counts(routing.keep), **EXACT),
            "routed_per_expert": Computed(wanted.counts(wanted.keep), **EXACT),
        },
        inputs={"x", "weight", "mask", "importance"},
    )


def _check_switch(case: Case, parameters: Parameters) -> Findings:
    """Top-1 with places for each sequence; relu experts; load balance and z loss."""
    config = routing_config(parameters, top_k=1, normalise=False)
    batch, _, width = case.tensor("x").shape
    capacity = _number(parameters, "capacity")
    limits = CapacityConfig(
        minimum=capacity, maximum=capacity, scope="sequence", order="token_major"
    )
    logits = _logits(case)
    routing = apply_capacity(route(logits, config), limits, num_groups=batch)
    x = jnp.asarray(case.tensor("x")).reshape(-1, width)
    wi, wo = (jnp.asarray(case.tensor(name)) for name in ("wi", "wo"))
    hidden = jax.nn.relu(jnp.einsum("td,efd->etf", x, wi))
    y = jnp.einsum("te,etf,edf->td", combine_matrix(routing), hidden, wo)
    served = (combine_matrix(replace(routing, weight=jnp.ones_like(routing.weight)))) > 0
    shape = batch, -1

    return Findings(
        computed={
            "logits": Computed(logits.reshape(*shape, config.num_experts), **FORWARD),
            "prob": Computed(jnp.max(routing.scores, axis=-1).reshape(*shape, 1), **FORWARD),
            "dispatch": Computed(served.reshape(*shape, config.num_experts), **EXACT),
            "output": Computed(y.reshape(*shape, width), **FORWARD),
            "aux_loss": Computed(routed_load_balance(routing, num_groups=batch)[None], **LOSS),
            "z_loss": Computed(z_loss(routing)[None], **LOSS),
        },
        inputs={"x", "weight", "wi", "wo"},
    )


def _check_gshard(case: Case, parameters: Parameters) -> Findings:
    """Top-2 with places over all tokens, padding first taken out."""
    policy = parameters.get("second_expert_policy", "all")
    if policy != "all":
        return Findings(note=f"second_expert_policy {policy!r} draws at random")
    before = bool(parameters["normalize_before_dropping"])
    config = routing_config(parameters, strategy="top_2", normalise=before)
    capacity = _number(parameters, "capacity")
    limits = CapacityConfig(
        minimum=capacity,
        maximum=capacity,
        order="priority" if parameters["batch_prioritized"] else "choice_major",
        renormalise=not before,
    )
    logits = _logits(case)
    padding = jnp.asarray(case.tensor("padding_mask"))
    routing = apply_capacity(route(logits, config, mask_T=padding == 0), limits)
    first = replace(routing, keep=routing.keep & jnp.asarray([[True, False]]))
    first = combine_matrix(replace(first, weight=jnp.ones_like(first.weight)))
    return Findings(
        computed={
            "logits": Computed(logits, **FORWARD),
            "combine": Computed(combine_matrix(routing), **FORWARD),
            "top1_mask": Computed(first, **EXACT),
        },
        inputs={"x", "weight", "padding_mask"},
    )


def _check_balance(case: Case, parameters: Parameters) -> Findings:
    """The load balance of several layers at once, with and without a mask, in the form that
    gives top_k for even use.
    """
    config = routing_config(parameters)

    def loss(logits_LTE: np.ndarray, mask_T: jax.Array | None = None) -> jax.Array:
        layers = [route(jnp.asarray(logits), config, mask_T=mask_T) for logits in logits_LTE]
        return routed_load_balance(join(layers), balanced_value=config.top_k)[None]

    logits, mask = case.tensor("logits"), jnp.asarray(case.tensor("mask")).reshape(-1)
    return Findings(
        computed={
            "loss_nomask": Computed(loss(logits), **LOSS),
            "loss_mask": Computed(loss(logits, mask), **LOSS),
            "balanced_loss": Computed(loss(case.tensor("balanced_logits")), **LOSS),
        },
        inputs={"logits", "mask", "balanced_logits"},
    )


def _check_expert_choice(case: Case, parameters: Parameters) -> Findings:
    config = routing_config(parameters, strategy="expert_choice", allow_non_causal=True)
    routing = route(_logits(case), config, capacity=_number(parameters, "capacity"))
    return Findings(
        computed={"combine": Computed(combine_matrix(routing), **FORWARD)}, inputs={"x", "weight"}
    )


def _check_bias(case: Case, parameters: Parameters) -> Findings:
    """One update of the correction bias for each row of counts."""
    rate = parameters.get("speed")
    if not isinstance(rate, int | float):
        raise ValueError(f"parameter 'speed' is {rate!r}; a number is needed")
    counts, rows = jnp.asarray(case.tensor("counts")), []
    bias = jnp.zeros(counts.shape[1:], jnp.float32)
    for count in counts:
        bias = update_router_state(bias, count, rate=rate)
        rows.append(bias)
    return Findings(computed={"bias": Computed(np.stack(rows), atol=1e-7)}, inputs={"counts"})
