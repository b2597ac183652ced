"""A start from which Chronos learns in minutes to look up what came a period ago.

Three parts: tables of tokens are smooth, so that bins near each other begin alike; the first
self-attention of encoder and decoder is a clock, from which a step knows where in the period it
is; cross-attention finds what is alike, by the clock most of all, and copies it.

The clock: all tokens look at the one that ends the context, or begins the forecast, the more the
higher a wave over the distance to it, and each head writes how much it sees to a feature of its
own. Both tokens stand where the past meets the future, so a step ahead and the steps whole periods
before it see the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins
from moejax.models.chronos import ChronosModelConfig

FINEST = 2.0  # the shortest wave over the values, in bins, over 2 pi
WAVE = 2.0  # size of the biases of positions
SHARP = 5.0  # how much more cross-attention heeds the clock than the rest
COMMON, END, CLOCK = 0, 1, 2  # features: of every token, of the two ends alone, the first head's

Tree = Any


def structured(config: ChronosModelConfig, variables: Tree, period: int, key: jax.Array) -> Tree:
    """The variables with the three parts, for series that repeat every `period` steps.

    ValueError where a feature for each head does not fit.
    """
    needed = CLOCK + config.t5.num_heads
    if config.t5.d_model < needed:
        raise ValueError(
            f"training.period is {period}, whose start takes {needed} features for"
            f" {config.t5.num_heads} heads; model.t5.d_model is {config.t5.d_model}: make it larger"
            " or training.period 0"
        )
    params = _smooth_tokens(config, variables["params"], key)
    params["shared"] = _mark_ends(config, params["shared"])
    params = _with_clocks(config, params, period)
    return {**variables, "params": _copying(config, params)}


def _smooth_tokens(config: ChronosModelConfig, params: Tree, key: jax.Array) -> Tree:
    """Token tables as large as before, of which each feature is a wave over the bins' values."""
    waves_VD = _waves(config, key)
    special = config.chronos.n_special_tokens
    params = dict(params)

    def smooth(table: jax.Array, axis: int) -> jax.Array:
        """`table` with the vocabulary on `axis`, features on the other of the last two."""
        rows = jnp.moveaxis(table, axis, -2)
        new = jnp.broadcast_to(waves_VD * jnp.std(rows), rows.shape)
        keep = jnp.arange(rows.shape[-2])[:, None] < special
        return jnp.moveaxis(jnp.where(keep, rows, new), -2, axis)

    params["shared"] = smooth(params["shared"], -2)
    if "lm_head" in params:
        params["lm_head"] = smooth(params["lm_head"], -1)
    if "experts" in params:
        experts = dict(params["experts"])
        params["experts"] = experts | {"lm_head": smooth(experts["lm_head"], -1)}
    return params


def _waves(config: ChronosModelConfig, key: jax.Array) -> jax.Array:
    """float32 [V, D] of unit size and random lengths; tokens without a bin stand at 0."""
    centers = MeanScaleUniformBins(config.chronos).centers
    values_V = np.zeros(config.t5.vocab_size, np.float32)
    first = config.chronos.n_special_tokens + 1
    values_V[first : first + len(centers)] = centers
    lengths, phases = jax.random.split(key)
    finest = FINEST * (centers[1] - centers[0])
    longest = np.log(np.abs(centers).max() / finest)
    shape = (config.t5.d_model,)
    rate_D = jnp.exp(-longest * jax.random.uniform(lengths, shape)) / finest
    phase_D = 2 * np.pi * jax.random.uniform(phases, shape)
    return np.sqrt(2) * jnp.cos(values_V[:, None] * rate_D[None] + phase_D[None])


def _mark_ends(config: ChronosModelConfig, table_VD: jax.Array) -> jax.Array:
    """The tokens' table with the features that the clock reads, and room for those it writes."""
    size = jnp.std(table_VD)
    ends = np.array([config.t5.decoder_start_token_id, config.chronos.eos_token_id])
    table_VD = table_VD.at[:, END : CLOCK + config.t5.num_heads].set(0.0)
    table_VD = table_VD.at[:, COMMON].set(size).at[ends].set(0.0)
    return table_VD.at[ends, END].set(size * config.t5.d_model**0.5)


def _with_clocks(config: ChronosModelConfig, params: Tree, period: int) -> Tree:
    """Every stack of blocks that has positions, its first self-attention a clock."""
    if not isinstance(params, dict):
        return params
    if "relative_bias" not in params:
        return {name: _with_clocks(config, child, period) for name, child in params.items()}
    both_ways = "stack" not in params  # a decoder's blocks lie a level deeper
    blocks = params if both_ways else params["stack"]
    first = blocks["blocks_0"]
    first = first | {"attention": _looking_at_ends(config, first["attention"])}
    blocks = blocks | {"blocks_0": first}
    table = _wave_table(params["relative_bias"].shape, both_ways, period)
    return (blocks if both_ways else params | {"stack": blocks}) | {"relative_bias": table}


def _wave_table(shape: tuple[int, ...], both_ways: bool, period: int) -> jax.Array:
    """float32 [..., rows, heads]: cosine and sine of the period, of its half, of its third, ...

    An encoder's second half of rows is of what comes later.
    """
    row = np.arange(shape[-2])
    half = shape[-2] // 2
    steps = np.where(row < half, -row, row - half) if both_ways else -row
    head = np.arange(shape[-1])
    turns = steps[:, None] * (head // 2 + 1) / period + head % 2 / 4
    waves = WAVE * np.cos(2 * np.pi * turns)
    return jnp.broadcast_to(jnp.asarray(waves, jnp.float32), shape)


def _looking_at_ends(config: ChronosModelConfig, attention: Tree) -> Tree:
    """Self-attention [..., D, heads * d_kv] in which an end weighs as much as a whole context."""
    t5, attention = config.t5, dict(attention)
    # of features behind a norm: the common one is the factor, an end's the factor times sqrt(D)
    score = np.log(config.chronos.context_length)
    gain = (score / t5.d_model**0.5) ** 0.5 / t5.initializer_factor
    heads = np.arange(t5.num_heads)
    own = heads * t5.d_kv  # the first feature inside each head
    attention["query"] = attention["query"].at[..., COMMON, own].set(gain)
    attention["key"] = attention["key"].at[..., END, own].set(gain)
    value = attention["value"].at[..., own].set(0.0)
    attention["value"] = value.at[..., END, own].set(1.0)
    output = attention["output"].at[..., own, :].set(0.0)
    attention["output"] = output.at[..., own, CLOCK + heads].set(1.0)
    return attention


def _copying(config: ChronosModelConfig, params: Tree, name: str = "") -> Tree:
    """Cross-attention whose queries are its keys, and whose outputs are its values' transpose.

    After the mimetic initialisation of self-attention (Trockman and Kolter, 2023).
    """
    if not isinstance(params, dict):
        return params
    params = {inner: _copying(config, child, inner) for inner, child in params.items()}
    if name != "cross":
        return params
    output = jnp.swapaxes(params["value"], -1, -2)
    gain = SHARP / (config.t5.initializer_factor**2 * config.t5.d_kv**0.5)
    clock = slice(CLOCK, CLOCK + config.t5.num_heads)
    key = params["key"].at[..., clock, :].multiply(gain)
    return params | {"query": jnp.copy(key), "key": key, "output": output}
