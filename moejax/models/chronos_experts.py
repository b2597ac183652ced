"""Experts of Chronos-MoE on one series' states; the mixture stacks them. Names as in the design.

All take x [R, S, D]; N heads, H the width of a head, V tokens.
"""

from typing import Any

import flax.linen as nn
import jax

from moejax.layers.attention import attention
from moejax.layers.init import FAN_IN
from moejax.layers.linear import linear
from moejax.layers.norm import layer_norm

NORM_EPS = 1e-5
DROPOUT = 0.1


def dense(module: nn.Module, name: str, x: jax.Array, width: int, activation=None) -> jax.Array:
    """activation(x @ kernel + bias); the module gets the parameters `name` and `name`_bias."""
    kernel = module.param(name, FAN_IN, (x.shape[-1], width)).astype(x.dtype)
    bias = module.param(f"{name}_bias", nn.initializers.zeros, (width,)).astype(x.dtype)
    return linear(x, kernel, bias, activation=activation)


def norm(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Layer norm; the module gets the parameters `name` and `name`_bias."""
    width = (x.shape[-1],)
    scale = module.param(name, nn.initializers.ones, width)
    bias = module.param(f"{name}_bias", nn.initializers.zeros, width)
    return layer_norm(x, scale, bias, eps=NORM_EPS)


class ExpertHead(nn.Module):
    """norm(x + ffn(x)), what an expert makes of the shared states: [..., D] -> [..., D].

    Without `use_norm` the sum as it is: a head can then begin as the identity.
    """

    use_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        drop = nn.Dropout(DROPOUT, deterministic=not train)
        width = x.shape[-1]
        y = drop(dense(self, "hidden", x, 4 * width, "relu"))
        y = x + drop(dense(self, "output", y, width))
        return norm(self, "norm", y) if self.use_norm else y


class PlainEncoder(nn.Module):
    """The community fork's expert: post-norm layers with biases and no positions at all."""

    num_layers: int
    num_heads: int

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array, train: bool = False) -> jax.Array:
        for index in range(self.num_layers):
            layer = PlainLayer(self.num_heads, name=f"layers_{index}")
            x_BSD = layer(x_BSD, mask_BS, train)
        return x_BSD


class PlainLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + ffn(x))."""

    num_heads: int

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array, train: bool) -> jax.Array:
        drop = nn.Dropout(DROPOUT, deterministic=not train)
        width = x_BSD.shape[-1]
        x_BSD = norm(self, "attention_norm", x_BSD + drop(self._attend(x_BSD, mask_BS)))
        y_BSD = drop(dense(self, "hidden", x_BSD, 4 * width, "relu"))
        return norm(self, "ffn_norm", x_BSD + drop(dense(self, "output", y_BSD, width)))

    def _attend(self, x_BSD: jax.Array, mask_BS: jax.Array) -> jax.Array:
        batch, steps, width = x_BSD.shape
        head = width // self.num_heads

        def heads(name: str) -> jax.Array:
            y = dense(self, name, x_BSD, width).reshape(batch, steps, self.num_heads, head)
            return y.transpose(0, 2, 1, 3)

        mask = mask_BS.astype(bool)[:, None, None, :]
        y = attention(heads("query"), heads("key"), heads("value"), mask, scale=head**-0.5)
        y_BSD = y.transpose(0, 2, 1, 3).reshape(batch, steps, width)
        return dense(self, "attention_output", y_BSD, width)


class Router(nn.Module):
    """Logits over the experts of a context [B, D], float32 [B, E]."""

    num_experts: int
    hidden: int

    @nn.compact
    def __call__(self, x_BD: jax.Array, train: bool = False) -> jax.Array:
        init = nn.initializers.normal(0.02)
        x_BD = x_BD.astype("float32")

        def layer(name: str, x: Any, width: int, activation=None):
            kernel = self.param(name, init, (x.shape[-1], width))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (width,))
            return linear(x, kernel, bias, activation=activation)

        y = layer("hidden", x_BD, self.hidden, "relu")
        y = nn.Dropout(DROPOUT)(y, deterministic=not train)
        return layer("output", y, self.num_experts)
