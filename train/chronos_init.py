"""A start from which Chronos learns in minutes: bins that lie near each other begin alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins
from moejax.models.chronos import ChronosModelConfig

FINEST = 0.02  # the shortest wave, in units of a context's mean size, over 2 pi


def smooth_tokens(config: ChronosModelConfig, variables: Any, key: jax.Array) -> Any:
    """The variables with token tables that are smooth in the bins' values, as large as before.

    Each feature is a wave of a random length and phase over the values. Special tokens keep theirs.
    """
    waves_VD = _waves(config, key)
    special = config.chronos.n_special_tokens
    params = dict(variables["params"])

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
    return {**variables, "params": params}


def _waves(config: ChronosModelConfig, key: jax.Array) -> jax.Array:
    """float32 [V, D] of unit size; tokens without a bin stand at 0."""
    centers = MeanScaleUniformBins(config.chronos).centers
    values_V = np.zeros(config.t5.vocab_size, np.float32)
    first = config.chronos.n_special_tokens + 1
    values_V[first : first + len(centers)] = centers
    lengths, phases = jax.random.split(key)
    longest = np.log(np.abs(centers).max() / FINEST)
    shape = (config.t5.d_model,)
    rate_D = jnp.exp(-longest * jax.random.uniform(lengths, shape)) / FINEST
    phase_D = 2 * np.pi * jax.random.uniform(phases, shape)
    return np.sqrt(2) * jnp.cos(values_V[:, None] * rate_D[None] + phase_D[None])
