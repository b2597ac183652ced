"""Leave experts out of a trained MoLE: the softmax over the rest shares their weight."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.models.mole import MoLEConfig


def rarely_used(gate_WKC: np.ndarray, threshold: float) -> list[int]:
    """Experts whose weight stays under `threshold` in every window and channel: [W, K, C] -> ids.

    The expert with the largest weight is never among them.
    """
    peak_K = np.asarray(gate_WKC).max(axis=(0, 2))
    return [k for k, peak in enumerate(peak_K) if peak < threshold and k != peak_K.argmax()]


def keep_experts(
    config: MoLEConfig, params: Any, experts: Sequence[int]
) -> tuple[MoLEConfig, dict[str, Any]]:
    """Config and parameters of the model with only these experts, in this order.

    ValueError unless they are distinct and 0 <= expert < num_experts.
    """
    kept = list(experts)
    if (
        not kept
        or len(set(kept)) != len(kept)
        or not all(0 <= k < config.num_experts for k in kept)
    ):
        raise ValueError(
            f"experts to keep are {kept}; give distinct numbers from 0 to {config.num_experts - 1}"
        )
    params = dict(params)
    params["experts"] = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _keep(leaf, kept, config.num_experts, _expert_axis(path, config)),
        params["experts"],
    )
    if len(kept) == 1:
        params.pop("router", None)
        small = replace(config, num_experts=1, router="none", top_k=None, head_dropout=0.0)
        return replace(small, load_balance_weight=0.0), params
    if config.router != "none":
        router = dict(params["router"])
        router["output"] = jax.tree.map(
            lambda leaf: _keep(leaf, kept, config.num_experts, -1), router["output"]
        )
        params["router"] = router
    hidden = config.router_width
    top_k = None if config.top_k is None else min(config.top_k, len(kept))
    return replace(config, num_experts=len(kept), router_hidden=hidden, top_k=top_k), params


def _expert_axis(path, config: MoLEConfig) -> int:
    """Axis of the expert-major outputs: the last, but for the biases [Q, C] of single channels."""
    return -2 if config.individual and path[-1].key == "bias" else -1


def _keep(leaf: jax.Array, kept: list[int], num_experts: int, axis: int) -> jax.Array:
    """The blocks of an expert-major axis that belong to the kept experts."""
    blocks = jnp.split(jnp.asarray(leaf), num_experts, axis=axis)
    return jnp.concatenate([blocks[k] for k in kept], axis=axis)
