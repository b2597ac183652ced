"""Parts of a T5 block: relative positions, attention without a scale, feed-forward networks.

N heads, H the width of a head, S queries, T keys, R rows: those of a batch B times its samples.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moejax.layers.attention import attention
from moejax.layers.cache import Layer, kv_update
from moejax.layers.linear import linear
from moejax.layers.norm import rms_norm

FeedForward = Literal["relu", "gated_gelu"]
FEED_FORWARDS = ("relu", "gated_gelu")
Init = Callable[..., jax.Array]


def relative_buckets(
    offsets: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """int32 bucket of each offset, key position - query position; any shape.

    Near offsets have a bucket each, farther ones share buckets of growing width. Without
    `bidirectional` all keys ahead share bucket 0. The logarithm is float32, cut towards 0.
    """
    offsets = np.asarray(offsets, np.int64)
    first = np.zeros_like(offsets)
    if bidirectional:
        num_buckets //= 2
        first = np.where(offsets > 0, num_buckets, 0)
        distance = np.abs(offsets)
    else:
        distance = np.maximum(-offsets, 0)
    exact = num_buckets // 2
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    growth = np.log(ratio) / np.float32(math.log(max_distance / exact))
    far = exact + (growth * np.float32(num_buckets - exact)).astype(np.int64)
    bucket = np.where(distance < exact, distance, np.minimum(far, num_buckets - 1))
    return (first + bucket).astype(np.int32)


def position_bias(
    table_RN: jax.Array, steps: int, keys: int, *, bidirectional: bool, max_distance: int
) -> jax.Array:
    """float32 [1, N, S, T]: what T5 adds to the scores of queries and keys at 0, 1, ..."""
    offsets_ST = np.arange(keys)[None, :] - np.arange(steps)[:, None]
    buckets_ST = relative_buckets(
        offsets_ST,
        bidirectional=bidirectional,
        num_buckets=table_RN.shape[0],
        max_distance=max_distance,
    )
    return table_RN.astype(jnp.float32).T[:, buckets_ST][None]


class T5Attention(nn.Module):
    """softmax(q k^T + bias) v, without a scale; params query, key, value [D, N * H], output.

    `key_values` gives the keys and values [B, N, T, H] of a memory, `__call__` attends to given
    ones. Rows R of x may be a multiple of B: a memory's samples, side by side.
    """

    d_model: int
    num_heads: int
    head_dim: int
    factor: float = 1.0

    def setup(self):
        width, inner = self.d_model, self.num_heads * self.head_dim
        deviations = {
            "query": (width * self.head_dim) ** -0.5,
            "key": width**-0.5,
            "value": width**-0.5,
        }
        for name, deviation in deviations.items():
            init = nn.initializers.normal(self.factor * deviation)
            setattr(self, name, self.param(name, init, (width, inner)))
        init = nn.initializers.normal(self.factor * inner**-0.5)
        self.output = self.param("output", init, (inner, width))

    def key_values(self, x_BTD: jax.Array) -> Layer:
        """The keys and values of a memory or of new tokens."""
        return {name: self._heads(x_BTD, getattr(self, name)) for name in ("key", "value")}

    def __call__(
        self,
        x_RSD: jax.Array,
        layer: Layer,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        rows, steps, _ = x_RSD.shape
        batch = layer["key"].shape[0]
        # the samples of a memory are so many more queries of it
        x_BQD = x_RSD.reshape(batch, rows // batch * steps, -1)
        y_BNQH = attention(
            self._heads(x_BQD, self.query),
            layer["key"].astype(x_RSD.dtype),
            layer["value"].astype(x_RSD.dtype),
            mask,
            bias,
            scale=1.0,
        )
        y_RSI = y_BNQH.transpose(0, 2, 1, 3).reshape(rows, steps, -1)
        return linear(y_RSI, self.output.astype(x_RSD.dtype))

    def _heads(self, x_BSD: jax.Array, kernel: Any) -> jax.Array:
        y_BSI = linear(x_BSD, kernel.astype(x_BSD.dtype))
        y_BSNH = y_BSI.reshape(*x_BSD.shape[:2], self.num_heads, self.head_dim)
        return y_BSNH.transpose(0, 2, 1, 3)


def stored(layer: Layer, new: Layer, start: jax.Array) -> Layer:
    """A cache with new keys and values at the slots from `start` on."""
    return {name: kv_update(layer[name], new[name], start) for name in new}


class T5FeedForward(nn.Module):
    """relu(x wi) wo, or (gelu(x gate) * (x wi)) wo with gelu's tanh form: [..., D] -> [..., D].

    `dropout` acts on what is before wo.
    """

    d_model: int
    d_ff: int
    kind: FeedForward = "relu"
    dropout: float = 0.0
    factor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        inner = nn.initializers.normal(self.factor * self.d_model**-0.5)
        outer = nn.initializers.normal(self.factor * self.d_ff**-0.5)
        wi = self.param("wi", inner, (self.d_model, self.d_ff)).astype(x.dtype)
        if self.kind == "relu":
            y = linear(x, wi, activation="relu")
        else:
            gate = self.param("gate", inner, (self.d_model, self.d_ff)).astype(x.dtype)
            y = linear(x, gate, activation="gelu_tanh") * linear(x, wi)
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        return linear(y, self.param("wo", outer, (self.d_ff, self.d_model)).astype(x.dtype))


class T5Norm(nn.Module):
    """RMS norm; T5 begins its scales at the initialisation factor."""

    eps: float
    factor: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.constant(self.factor), (x.shape[-1],))
        return rms_norm(x, scale_D, eps=self.eps)
