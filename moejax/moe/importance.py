"""Learned token importance: which tokens come first when places are short, and what they weigh."""

import flax.linen as nn
import jax

from moejax.moe.routing import router_logits


class TokenImportance(nn.Module):
    """a = sigmoid(x . v + c): [T, D] -> float32 [T]; 1/2 for every token at first.

    The order of a queue has no gradient; v and c learn from the factor 2 a on the routed output.
    """

    @nn.compact
    def __call__(self, x_TD: jax.Array) -> jax.Array:
        kernel_D1 = self.param("kernel", nn.initializers.zeros, (x_TD.shape[-1], 1))
        bias = self.param("bias", nn.initializers.zeros, ())
        return jax.nn.sigmoid(router_logits(x_TD, kernel_D1)[:, 0] + bias)
