"""A start from which Chronos learns in minutes to look up what came a period ago.

Three parts: tables of tokens are smooth, so that bins near each other begin alike; biases of
positions are waves over the distance; cross-attention finds what is alike and copies it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins
from moejax.models.chronos import ChronosModelConfig
from train.optim import is_position_table

FINEST = 2.0  # the shortest wave over the values, in bins, over 2 pi
DISTANCES = (4.0, 256.0)  # lengths of the waves over rows of a table of positions
BIAS = 2.0  # their size

Tree = Any


def structured(config: ChronosModelConfig, variables: Tree, key: jax.Array) -> Tree:
    """The variables with the three parts; special tokens and the other parameters are kept."""
    tokens, positions = jax.random.split(key)
    params = _smooth_tokens(config, variables["params"], tokens)
    params = _wave_positions(params, positions)
    return {**variables, "params": _copying(params)}


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


def _wave_positions(params: Tree, key: jax.Array) -> Tree:
    """Relative biases [..., rows, heads] that are waves over the distance, one a head."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    found = []
    for i, (path, leaf) in enumerate(leaves):
        if is_position_table(path):
            both_ways = "encoder" in [entry.key for entry in path]
            leaf = _wave_table(leaf.shape, both_ways, jax.random.fold_in(key, i))
        found.append(leaf)
    return jax.tree_util.tree_unflatten(structure, found)


def _wave_table(shape: tuple[int, ...], both_ways: bool, key: jax.Array) -> jax.Array:
    """float32 [..., rows, heads]; an encoder's second half of rows is of what comes later."""
    row = jnp.arange(shape[-2]).reshape(*(1 for _ in shape[:-2]), -1, 1)
    if both_ways:
        half = shape[-2] // 2
        row = jnp.where(row < half, -row, row - half)
    lengths, phases = jax.random.split(key)
    size = (*shape[:-2], 1, shape[-1])
    low, high = np.log(DISTANCES)
    length = jnp.exp(jax.random.uniform(lengths, size, minval=low, maxval=high))
    phase = jax.random.uniform(phases, size)
    return BIAS * jnp.cos(2 * np.pi * (row / length + phase))


def _copying(params: Tree, name: str = "") -> Tree:
    """Cross-attention whose queries are its keys, and whose outputs are its values' transpose.

    After the mimetic initialisation of self-attention (Trockman and Kolter, 2023).
    """
    if not isinstance(params, dict):
        return params
    params = {inner: _copying(child, inner) for inner, child in params.items()}
    if name != "cross":
        return params
    output = jnp.swapaxes(params["value"], -1, -2)
    return params | {"query": jnp.copy(params["key"]), "output": output}
