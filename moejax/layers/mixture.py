"""Dense mixtures of forecasts: the two routers of MoLE and the weighted sum.

The time router is the published one; the statistics router looks at the values of the window.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.layers.linear import Linear, linear
from moejax.layers.softmax import exclude, softmax, top_k_softmax
from moejax.regions import region

# A floor under the variance, so that the square root of a constant window has a gradient (of 0).
TINY_VARIANCE = 1e-12


@region("moejax.mixture", float32=True)
def mixture(heads_BKPC: jax.Array, gate_BK1C: jax.Array) -> jax.Array:
    """Sum of the experts' forecasts weighted by the gate: [B, K, P, C] -> [B, P, C].

    The gate's last axis may be 1: one weight for all channels.
    """
    return jnp.sum(heads_BKPC * gate_BK1C, axis=1)


@region("moejax.time_router", float32=True)
def time_router(
    mark_BF: jax.Array,
    hidden_kernel: jax.Array,
    hidden_bias: jax.Array,
    output_kernel: jax.Array,
    output_bias: jax.Array,
    keep_BKC: jax.Array | None = None,
    *,
    num_experts: int,
) -> jax.Array:
    """Gate [B, K, C]: softmax over the experts of an MLP on calendar features [B, F].

    Columns of the output layer are expert-major, k * C + c. Where `keep` is 0 the logit is replaced
    by -1e20 (head dropout); where that leaves no expert the gate is uniform.
    """
    hidden = linear(mark_BF, hidden_kernel, hidden_bias, activation="relu")
    logits = linear(hidden, output_kernel, output_bias)
    # the unit axis is the one the mixture broadcasts over, so the device reshapes only once
    logits_BK1C = logits.reshape(logits.shape[0], num_experts, 1, -1)
    if keep_BKC is not None:
        logits_BK1C = exclude(logits_BK1C, keep_BKC[:, :, None])
    return jnp.squeeze(softmax(logits_BK1C, axis=1), axis=2)


@region("moejax.window_statistics", float32=True)
def window_statistics(x_BSC: jax.Array) -> jax.Array:
    """Mean, std, min and max of each channel over time: [B, S, C] -> [B, 4 * C].

    The std is the population's (ddof 0). Statistic-major: first the means of all channels.
    """
    mean_B1C = jnp.mean(x_BSC, axis=1, keepdims=True)
    variance_BC = jnp.mean(jnp.square(x_BSC - mean_B1C), axis=1)
    std_BC = jnp.sqrt(jnp.maximum(variance_BC, TINY_VARIANCE))
    parts = [mean_B1C[:, 0], std_BC, jnp.min(x_BSC, axis=1), jnp.max(x_BSC, axis=1)]
    return jnp.concatenate(parts, axis=-1)


@region("moejax.stats_router", float32=True)
def stats_router(x_BSC: jax.Array, layers: tuple[tuple[jax.Array, jax.Array], ...]) -> jax.Array:
    """Router logits [B, K]: an MLP on the window's statistics.

    `layers` are (kernel, bias) pairs; ReLU between them.
    """
    *hidden, output = layers
    features = window_statistics(x_BSC)
    for kernel, bias in hidden:
        features = linear(features, kernel, bias, activation="relu")
    return linear(features, *output)


class TimeRouter(nn.Module):
    """Gate from the calendar features of the window's first step, one weight for each channel.

    Shapes: mark [B, F] -> gate [B, K, C]; params hidden [F, H] and output [H, K*C] with biases.
    With `train`, each logit is dropped with probability `head_dropout` (rng "dropout"); the softmax
    shares the weight among the rest.
    """

    num_experts: int
    num_channels: int
    num_time_features: int
    num_hidden: int
    head_dropout: float = 0.0

    def setup(self):
        self.hidden = Linear(self.num_time_features, self.num_hidden, activation="relu")
        self.output = Linear(self.num_hidden, self.num_experts * self.num_channels)

    def __call__(self, mark_BF: jax.Array, train: bool = False) -> jax.Array:
        keep_BKC = None
        if train and self.head_dropout > 0:
            shape = (mark_BF.shape[0], self.num_experts, self.num_channels)
            keep_BKC = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.head_dropout, shape)
        weights = self.hidden.kernel, self.hidden.bias, self.output.kernel, self.output.bias
        return time_router(mark_BF, *weights, keep_BKC, num_experts=self.num_experts)


class StatsRouter(nn.Module):
    """Gate from the window's own statistics, one weight for all channels.

    Shapes: x [B, S, C] -> logits [B, K], gate [B, K]; params hidden_0 (and hidden_1), output. With
    `top_k` the gate is a softmax over the k largest logits and 0 elsewhere.
    """

    num_experts: int
    num_channels: int
    num_hidden: int = 64
    num_layers: int = 2
    top_k: int | None = None

    def setup(self):
        sizes = [4 * self.num_channels] + [self.num_hidden] * (self.num_layers - 1)
        pairs = itertools.pairwise(sizes)
        self.hidden = [Linear(inputs, outputs, activation="relu") for inputs, outputs in pairs]
        self.output = Linear(self.num_hidden, self.num_experts)

    def __call__(self, x_BSC: jax.Array) -> tuple[jax.Array, jax.Array]:
        layers = tuple((layer.kernel, layer.bias) for layer in (*self.hidden, self.output))
        logits_BK = stats_router(x_BSC, layers)
        if self.top_k is None:
            return logits_BK, softmax(logits_BK, axis=-1)
        return logits_BK, top_k_softmax(logits_BK, k=self.top_k)
