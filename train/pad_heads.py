"""Heads of whole tiles: the same language model with zeros between its heads' features.

ttnn's attention takes heads whose width is a multiple of 32. A narrower head gets features that are
always 0, in the weights, so that the device pays nothing for it. The pairs that turn keep their
angles: W' = r W features with the base to the power r have, in their first W/2 pairs, those of W.
What counts features is made up for: the scale of the scores by the queries, the mean of a norm by
its epsilon and scales.
"""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lowering.ir import TILE
from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import LMConfig


def pad_heads(config: LMConfig, variables: Any) -> tuple[LMConfig, Any]:
    """The config and variables of an equal model; the same ones where nothing is to be done.

    That is for latent attention, whole tiles already, and clipped queries (a clipped query cannot
    make up for the scale).
    """
    attention = config.attention
    if not isinstance(attention, AttentionConfig) or attention.clip is not None:
        return config, variables
    missing = -attention.head_dim % TILE
    if not missing:
        return config, variables
    width = attention.head_dim + missing
    padded = replace(
        attention,
        head_dim=width,
        rope=_rope(attention.rope, attention.head_dim, width),
        norm_eps=attention.norm_eps * attention.head_dim / width,
    )
    params = dict(variables["params"])
    for index in range(config.num_layers):
        layer = dict(params[f"layers_{index}"])
        layer["attention"] = _layer(layer["attention"], attention, width)
        params[f"layers_{index}"] = layer
    return replace(config, attention=padded), {**variables, "params": params}


def _rope(rope: RopeConfig | None, narrow: int, wide: int) -> RopeConfig | None:
    if rope is None:
        return None
    more = (1.0,) * ((wide - narrow) // 2)
    factors = {
        name: (*getattr(rope, name), *more)
        for name in ("short_factors", "long_factors")
        if getattr(rope, name)
    }
    return replace(rope, base=rope.base ** (wide / narrow), **factors)


def _layer(params: Any, attention: AttentionConfig, width: int) -> Any:
    """One layer's attention parameters with wider heads."""
    narrow, ratio = attention.head_dim, width / attention.head_dim
    normed = attention.qk_norm is not None
    # a norm over more zeros gives numbers sqrt(ratio) larger; scores are scaled by 1 / sqrt(width)
    factors = {
        "query": 1.0 if normed else ratio**0.5,
        "key": 1.0,
        "value": 1.0,
        "query_norm": 1.0,
        "key_norm": ratio**-0.5,
    }
    places = _places(narrow, width, attention.rope)
    padded = {}
    for name, leaf in params.items():
        if name == "output":
            padded[name] = _spread(np.asarray(leaf), places, width, axis=0)
        elif name == "output_bias":
            padded[name] = leaf
        else:
            factor = factors[name.removesuffix("_bias")]
            padded[name] = jax.tree.map(
                lambda x, f=factor: _spread(np.float32(f) * np.asarray(x), places, width), leaf
            )
    return padded


def _places(narrow: int, wide: int, rope: RopeConfig | None) -> np.ndarray:
    """Where each feature of a head goes: partners of a pair stay as far apart as the width says."""
    places = np.arange(narrow)
    if rope is None or rope.interleaved:
        return places
    return np.where(places < narrow // 2, places, places + (wide - narrow) // 2)


def _spread(x: np.ndarray, places: np.ndarray, width: int, axis: int = -1) -> np.ndarray:
    """Heads side by side along an axis, each with its features at `places` of `width`."""
    x = np.moveaxis(x, axis, -1)
    heads = x.reshape(*x.shape[:-1], -1, len(places))
    wide = np.zeros((*heads.shape[:-1], width), x.dtype)
    wide[..., places] = heads
    return np.moveaxis(wide.reshape(*x.shape[:-1], -1), -1, axis)
