"""A mixture from a dense Chronos: it begins with the dense model's forecasts."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from moejax.interop.chronos import Variables, initial
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_moe import shared_layers


def warm_start(
    config: ChronosModelConfig, variables: Variables, *, seed: int = 0, **options: Any
) -> tuple[ChronosModelConfig, Variables]:
    """Config and variables of a mixture whose experts are copies of the dense model's parts.

    `options`: fields of ChronosConfig, such as num_experts or moe_architecture. The router begins
    at zero: equal gates. Heads of "shared_then_expert" begin as the identity, so they have no layer
    norm (`expert_norm` False): behind one no parameters give the dense model's logits. ValueError
    for a model that is a mixture already, and for head_mode "encoder", which has no decoder.
    """
    if config.chronos.use_moe:
        raise ValueError("the model is a mixture already; start from a dense checkpoint")
    if options.get("head_mode", "decoder") != "decoder" or options.get("expert_norm", False):
        raise ValueError(
            "a warm start needs head_mode 'decoder' and no expert_norm; otherwise the experts"
            " cannot begin with the dense model's forecasts"
        )
    fields = {"use_moe": True, "expert_norm": False} | options
    chronos = replace(config.chronos, **fields)
    started = replace(config, chronos=chronos)
    dense = variables["params"]
    params = dict(initial(started, jax.random.key(seed))["params"])
    params["shared"] = dense["shared"]
    params["router"] = params["router"] | {
        name: jnp.zeros_like(params["router"][name]) for name in ("output", "output_bias")
    }
    first = shared_layers(config.t5, chronos)
    params["decoder"], tail = _split_decoder(dense["decoder"], first)
    experts = {"lm_head": _head(config, dense)}
    if tail:
        experts["tail"] = tail
    if chronos.moe_architecture == "expert_only":
        experts["encoder"] = dense["encoder"]
    else:
        params["encoder"] = dense["encoder"]
    count = chronos.num_experts
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), experts)
    if chronos.moe_architecture == "shared_then_expert":
        head = params["experts"]["head"]
        silent = {name: jnp.zeros_like(head[name]) for name in ("output", "output_bias")}
        copies["head"] = head | silent
    return started, {"params": params | {"experts": copies}}


def _split_decoder(decoder: Any, first: int) -> tuple[Any, Any]:
    """The decoder with its first blocks, and the rest, counted from 0."""
    stack = decoder["stack"]
    numbers = sorted(int(name.removeprefix("blocks_")) for name in stack)
    kept = {f"blocks_{n}": stack[f"blocks_{n}"] for n in numbers if n < first}
    tail = {f"blocks_{n - first}": stack[f"blocks_{n}"] for n in numbers if n >= first}
    return decoder | {"stack": kept}, tail


def _head(config: ChronosModelConfig, dense: Any) -> jax.Array:
    """The dense model's [D, V] with the rescaling of a tied one in it."""
    if config.t5.tie_word_embeddings:
        return dense["shared"].T * config.t5.d_model**-0.5
    return dense["lm_head"]
