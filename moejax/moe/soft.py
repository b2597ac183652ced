"""Soft MoE: experts work on weighted means of tokens. Puigcerver et al., 2024."""

import jax
import jax.numpy as jnp

from moejax.moe.config import RoutingConfig
from moejax.moe.experts import Params, expert_mlp
from moejax.moe.routing import router_logits, soft_route


def soft_moe(
    x_TD: jax.Array,
    kernel_DN: jax.Array,
    scale: jax.Array,
    params: Params,
    config: RoutingConfig,
    mask_T: jax.Array | None,
    num_groups: int,
) -> jax.Array:
    """Every slot a mean of its group's tokens, every token a mean of the slots' outputs.

    [T, D] -> float32 [T, D]; N = E * slots_per_expert, expert-major. Tokens and the router's
    columns are compared by their directions; `scale` [] multiplies that.
    """
    x = x_TD.astype(jnp.float32)
    logits_TN = router_logits(_unit(x, axis=-1), scale * _unit(kernel_DN, axis=0))
    soft = soft_route(logits_TN, config, mask_T=mask_T, num_groups=num_groups)
    x_GSD = x.reshape(num_groups, -1, x.shape[-1])
    x_GND = jnp.einsum("gsn,gsd->gnd", soft.dispatch, x_GSD)
    # experts first: the slots of an expert over all groups are its rows
    shape = num_groups, config.num_experts, config.slots_per_expert, x.shape[-1]
    x_EGPD = x_GND.reshape(shape).transpose(1, 0, 2, 3)
    rows_ERD = x_EGPD.reshape(config.num_experts, -1, x.shape[-1]).astype(x_TD.dtype)
    y_EGPD = expert_mlp(rows_ERD, params).reshape(x_EGPD.shape)
    y_GND = y_EGPD.transpose(1, 0, 2, 3).reshape(x_GND.shape)
    return jnp.einsum("gsn,gnd->gsd", soft.combine, y_GND).reshape(x.shape)


def _unit(x: jax.Array, axis: int) -> jax.Array:
    """x over its L2 norm; 0 stays 0."""
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
