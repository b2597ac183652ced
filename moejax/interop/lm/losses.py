"""The losses that published implementations train with: over all layers' routers at once.

They count assignments and sum probabilities over the tokens of all layers before they multiply;
MoELayer's own losses are one a layer, added.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from moejax.models.moe_lm import LMConfig, next_token_loss
from moejax.moe.assignment import Routing
from moejax.moe.losses import join, routed_load_balance


def routings(intermediates: Mapping[str, Any]) -> dict[int, Routing]:
    """What each MoE layer's router chose, by layer, from the collection that CausalLM sows."""
    return {
        int(name.removeprefix("layers_")): layer["moe"]["routing"][0]
        for name, layer in intermediates.items()
        if name.startswith("layers_") and "moe" in layer
    }


def joint_load_balance(config: LMConfig, intermediates: Mapping[str, Any]) -> jax.Array:
    """E * sum_e f_e P_e over the tokens of all layers, unscaled; f sums to top_k, the value of even
    use. 0 for a model without routers.
    """
    found = list(routings(intermediates).values())
    if config.moe is None or not found:
        return jnp.zeros(())
    return routed_load_balance(join(found), balanced_value=float(config.moe.routing.top_k))


def published_loss(
    config: LMConfig,
    logits_BSV: jax.Array,
    labels_BS: jax.Array,
    intermediates: Mapping[str, Any],
) -> jax.Array:
    """Cross-entropy of the next label plus `moe.losses.load_balance` times the joint balance.

    As Mixtral, Qwen-MoE and OLMoE train; load_balance is 0 for DeepSeek's, which have no such term.
    """
    cross, _ = next_token_loss(logits_BSV, labels_BS)
    if config.moe is None or not config.moe.losses.load_balance:
        return cross
    balance = joint_load_balance(config, intermediates)
    return cross + config.moe.losses.load_balance * balance
