"""Usage: how evenly the experts work and what was dropped, from one routing."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.moe.assignment import Routing
from moejax.moe.losses import router_entropy

FIELDS = (
    "wanted",
    "kept",
    "drop_rate",
    "utilisation",
    "imbalance",
    "load_entropy",
    "router_entropy",
    "invalid",
)


@partial(jax.tree_util.register_dataclass, data_fields=FIELDS, meta_fields=[])
@dataclass(frozen=True)
class Usage:
    """wanted, kept [M] int32: choices of each output before and after drops.

    drop_rate: share of the wanted choices of real experts that was dropped. utilisation [E]: kept
    choices over places (over the mean load without capacity). imbalance: largest load over mean
    load, minus 1; 0 is even. load_entropy: of the real experts' loads, in units of log E.
    router_entropy: mean over tokens, in units of log M. invalid: tokens with NaN among the logits
    or masked.
    """

    wanted: jax.Array
    kept: jax.Array
    drop_rate: jax.Array
    utilisation: jax.Array
    imbalance: jax.Array
    load_entropy: jax.Array
    router_entropy: jax.Array
    invalid: jax.Array


def usage(wanted: Routing, kept: Routing) -> Usage:
    """Usage from the routing before and after `apply_capacity`. Without tokens all is 0."""
    wanted_M, kept_M = wanted.counts(wanted.keep), kept.counts(kept.keep)
    num_experts = wanted.num_experts
    load_E, served_E = wanted_M[:num_experts], kept_M[:num_experts]
    total = jnp.sum(load_E)
    mean = jnp.maximum(total, 1) / num_experts
    share_E = load_E / jnp.maximum(total, 1)
    log_E = jnp.log(jnp.maximum(share_E, jnp.finfo(jnp.float32).tiny))
    places = mean if kept.capacity is None else kept.capacity * kept.num_groups
    return Usage(
        wanted=wanted_M,
        kept=kept_M,
        drop_rate=(total - jnp.sum(served_E)) / jnp.maximum(total, 1),
        utilisation=served_E / places,
        imbalance=jnp.where(total > 0, jnp.max(load_E) / mean - 1, 0.0),
        load_entropy=-jnp.sum(share_E * log_E) / jnp.log(max(num_experts, 2)),
        router_entropy=router_entropy(wanted),
        invalid=jnp.sum(~wanted.valid),
    )


def aux_loss(sown: Any) -> jax.Array:
    """Sum of the auxiliary losses that layers have sown in the collection "moe"."""
    total = jnp.zeros(())
    for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
        if any(getattr(key, "key", None) == "aux_loss" for key in path):
            total += jnp.sum(leaf)
    return total


def router_counts(sown: Any, state: Any) -> Any:
    """The counts for `update_router_state`: wanted choices in place of each bias of the state."""
    if "bias" in state:
        return {"bias": sum(found.wanted for found in sown["usage"])}
    return {name: router_counts(sown[name], inner) for name, inner in state.items()}


def expert_load(sown: Any) -> Any:
    """{"load": [E]} for each MoE layer that has sown: wanted choices over their mean, before any
    drop; 1 is an even share. Without choices 0.
    """
    if "usage" in sown:
        num_experts = sown["usage"][0].utilisation.shape[0]
        wanted_M = jnp.sum(jnp.stack([found.wanted for found in sown["usage"]]), axis=0)
        wanted_E = wanted_M[:num_experts]
        return {"load": wanted_E * num_experts / jnp.maximum(jnp.sum(wanted_E), 1)}
    return {name: expert_load(inner) for name, inner in sown.items()}
