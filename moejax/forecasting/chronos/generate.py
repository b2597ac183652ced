"""Forecast tokens of one window: contexts encoded once, then one compiled loop of decoder steps.

B contexts, N samples of each, R = B * N rows, T steps.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moejax.forecasting.chronos.sampling import draw, forbid
from moejax.models.chronos import ChronosModelConfig
from moejax.models.t5 import Memory
from moejax.moe.assignment import Routing


@partial(jax.jit, static_argnames=("config", "steps", "samples", "top_k"))
def generate(
    config: ChronosModelConfig,
    variables: Any,
    ids_BS: jax.Array,
    mask_BS: jax.Array,
    keys_B: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array | None,
    *,
    steps: int,
    samples: int,
    top_k: int,
) -> tuple[jax.Array, Routing | None]:
    """Tokens int32 [B, N, T], and which experts the contexts went to.

    A context's tokens depend on it and its key alone. Routing happens once.
    """
    batch = len(ids_BS)
    rows = batch * samples
    if config.chronos.use_moe and config.chronos.head_mode == "encoder":
        return _from_positions(
            config, variables, ids_BS, mask_BS, keys_B, temperature, top_p, steps, samples, top_k
        )
    memory, cache, routing = _prepared(config, variables, ids_BS, mask_BS, rows, steps)
    uniform_TR, keys_TR = _numbers(keys_B, samples, steps)

    def step(carry, inputs):
        token_R, cache = carry
        index, uniform_R, keys_R = inputs
        logits_R1V, cache = config.module().apply(
            variables, token_R[:, None], memory, cache, index, method="decode"
        )
        logits_RV = forbid(logits_R1V[:, 0], config.chronos.eos_token_id)
        token_R = draw(logits_RV, uniform_R, keys_R, temperature, top_k, top_p)
        return (token_R, cache), token_R

    start_R = jnp.full(rows, config.t5.decoder_start_token_id, jnp.int32)
    inputs = jnp.arange(steps), uniform_TR, keys_TR
    _, tokens_TR = lax.scan(step, (start_R, cache), inputs)
    return tokens_TR.T.reshape(batch, samples, steps), routing


def _prepared(
    config: ChronosModelConfig, variables, ids_BS, mask_BS, rows: int, steps: int
) -> tuple[Memory, Any, Routing | None]:
    """What the contexts are to the decoder, and empty caches for the rows."""
    module: Any = config.module()
    if not config.chronos.use_moe:
        memory = module.apply(variables, ids_BS, mask_BS, method="prepare")
        return memory, module.start_cache(rows, steps), None
    memory, routing = module.apply(variables, ids_BS, mask_BS, method="prepare")
    return memory, module.start_cache(rows, steps, memory.experts[0]), routing


def _numbers(keys_B: jax.Array, samples: int, steps: int) -> tuple[jax.Array, jax.Array]:
    """Uniform numbers and keys [T, R] by the contexts' keys."""
    shape = steps, samples
    uniform_BTN = jax.vmap(lambda key: jax.random.uniform(key, shape))(keys_B)
    keys_BTN = jax.vmap(lambda key: jax.random.split(key, shape))(keys_B)
    return tuple(numbers.swapaxes(0, 1).reshape(steps, -1) for numbers in (uniform_BTN, keys_BTN))  # type: ignore[return-value]


def _from_positions(
    config, variables, ids_BS, mask_BS, keys_B, temperature, top_p, steps, samples, top_k
) -> tuple[jax.Array, Routing]:
    """Head mode "encoder": step i is drawn from what the experts say at position i."""
    out = config.module().apply(variables, ids_BS, mask_BS)
    logits_BTV = forbid_all(out.logits[:, :steps], config.chronos.eos_token_id)
    uniform_TR, keys_TR = _numbers(keys_B, samples, steps)

    def step(_, inputs):
        logits_BV, uniform_R, keys_R = inputs
        logits_RV = jnp.repeat(logits_BV, samples, axis=0)
        return None, draw(logits_RV, uniform_R, keys_R, temperature, top_k, top_p)

    _, tokens_TR = lax.scan(step, None, (logits_BTV.swapaxes(0, 1), uniform_TR, keys_TR))
    return tokens_TR.T.reshape(len(ids_BS), samples, steps), out.routing


def forbid_all(logits_BTV: jax.Array, token: int) -> jax.Array:
    """`forbid` at every step."""
    return jax.vmap(lambda logits_TV: forbid(logits_TV, token))(logits_BTV)


@partial(jax.jit, static_argnames=("config",))
def encode(config: ChronosModelConfig, variables: Any, ids_BS, mask_BS) -> jax.Array:
    """The encoder's last states [B, S, D]; of a mixture, what its decoder reads."""
    module: Any = config.module()
    if not config.chronos.use_moe:
        return module.apply(variables, ids_BS, mask_BS, method="encode")
    if config.chronos.head_mode == "encoder":
        return module.apply(variables, ids_BS, mask_BS, method="read")
    _, sown = module.apply(variables, ids_BS, mask_BS, method="prepare", mutable="intermediates")
    return sown["intermediates"]["states"][0]
