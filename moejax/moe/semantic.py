"""Semantic routing: the router reads a learned view of the token, and perhaps of what led to it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.moe.routing import router_logits


class SemanticView(nn.Module):
    """x + x P, with `context` + m W too, m the mean of the tokens up to and with this one.

    Shapes: x [T, D] of `num_groups` sequences, mask [T] (true: a token) -> float32 [T, D]. P and W
    begin at 0, so the view begins as x itself. Tokens with NaN are left out of the means.
    """

    context: bool = False

    @nn.compact
    def __call__(self, x_TD: jax.Array, mask_T: jax.Array | None, num_groups: int) -> jax.Array:
        shape = x_TD.shape[-1:] * 2
        x_TD = x_TD.astype(jnp.float32)
        view_TD = x_TD + router_logits(x_TD, self.param("kernel", nn.initializers.zeros, shape))
        if not self.context:
            return view_TD
        kernel_DD = self.param("context_kernel", nn.initializers.zeros, shape)
        return view_TD + router_logits(running_mean(x_TD, mask_T, num_groups), kernel_DD)


def running_mean(x_TD: jax.Array, mask_T: jax.Array | None, num_groups: int) -> jax.Array:
    """Mean over the tokens of a sequence so far: [T, D] -> [T, D]; 0 before the first one."""
    counts_T = ~jnp.any(jnp.isnan(x_TD), axis=-1)
    if mask_T is not None:
        counts_T = counts_T & mask_T.astype(bool)
    shape = num_groups, -1, x_TD.shape[-1]
    x_GSD = jnp.where(counts_T[:, None], x_TD, 0.0).reshape(shape)
    length_GS1 = jnp.cumsum(counts_T.reshape(num_groups, -1, 1), axis=1)
    return (jnp.cumsum(x_GSD, axis=1) / jnp.maximum(length_GS1, 1)).reshape(x_TD.shape)
