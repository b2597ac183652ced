"""Linear maps over features, over time, and over time with weights for each channel."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.layers.gelu import gelu
from moejax.layers.init import uniform_fan_in
from moejax.regions import region

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": functools.partial(gelu, form="exact"),
    "gelu_tanh": functools.partial(gelu, form="tanh"),
    "tanh": jnp.tanh,
}


def activate(x: jax.Array, activation: str | None) -> jax.Array:
    """Apply an activation of the table by name, or none; ValueError for an unknown name."""
    if activation is None:
        return x
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {activation!r}; choose None or one of {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[activation](x)


@region("moejax.linear")
def linear(
    x: jax.Array, kernel_IO: jax.Array, bias_O: jax.Array | None = None, *, activation=None
) -> jax.Array:
    """activation(x @ kernel + bias) over the last axis: [..., I] -> [..., O]."""
    y = x @ kernel_IO
    if bias_O is not None:
        y = y + bias_O.reshape((1,) * (y.ndim - 1) + bias_O.shape)
    return activate(y, activation)


@region("moejax.time_linear")
def time_linear(
    x_BSC: jax.Array, kernel_SQ: jax.Array, bias_Q: jax.Array | None = None
) -> jax.Array:
    """The same linear map over time for every channel: [B, S, C] -> [B, Q, C]."""
    y_BQC = jnp.einsum("sq,bsc->bqc", kernel_SQ, x_BSC)
    return y_BQC if bias_Q is None else y_BQC + bias_Q[None, :, None]


@region("moejax.channel_time_linear")
def channel_time_linear(
    x_BSC: jax.Array, kernel_CSQ: jax.Array, bias_QC: jax.Array | None = None
) -> jax.Array:
    """A linear map over time for each channel: [B, S, C] -> [B, Q, C]."""
    y_BQC = jnp.einsum("csq,bsc->bqc", kernel_CSQ, x_BSC)
    return y_BQC if bias_QC is None else y_BQC + bias_QC[None]


class Linear(nn.Module):
    """Linear map over the last axis with torch's default initialisation.

    Shapes: [..., I] -> [..., O]; params kernel [I, O], bias [O].
    """

    num_inputs: int
    num_outputs: int
    activation: str | None = None

    def setup(self):
        init = uniform_fan_in(self.num_inputs)
        self.kernel = self.param("kernel", init, (self.num_inputs, self.num_outputs))
        self.bias = self.param("bias", init, (self.num_outputs,))

    def __call__(self, x: jax.Array) -> jax.Array:
        return linear(x, self.kernel, self.bias, activation=self.activation)


class TimeLinear(nn.Module):
    """Linear map over the time axis; with `num_channels`, one of its own for each channel.

    Shapes: [B, S, C] -> [B, Q, C]; params kernel [S, Q], bias [Q]; with `num_channels`
    kernel [C, S, Q], bias [Q, C].
    """

    num_inputs: int
    num_outputs: int
    num_channels: int | None = None

    def setup(self):
        init = uniform_fan_in(self.num_inputs)
        kernel, bias = (self.num_inputs, self.num_outputs), (self.num_outputs,)
        if self.num_channels is not None:
            kernel, bias = (self.num_channels, *kernel), (*bias, self.num_channels)
        self.kernel = self.param("kernel", init, kernel)
        self.bias = self.param("bias", init, bias)

    def __call__(self, x_BSC: jax.Array) -> jax.Array:
        apply = time_linear if self.num_channels is None else channel_time_linear
        return apply(x_BSC, self.kernel, self.bias)


class TimeMLP(nn.Module):
    """x + MLP(x) over the time axis, shared by the channels: [B, S, C] -> [B, S, C]."""

    seq_len: int
    num_hidden: int

    def setup(self):
        self.hidden = TimeLinear(self.seq_len, self.num_hidden)
        self.output = TimeLinear(self.num_hidden, self.seq_len)

    def __call__(self, x_BSC: jax.Array) -> jax.Array:
        return x_BSC + self.output(jax.nn.relu(self.hidden(x_BSC)))
