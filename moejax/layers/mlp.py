"""Gated feed-forward blocks."""

import flax.linen as nn
import jax

from moejax.layers.init import FAN_IN
from moejax.layers.linear import linear
from moejax.regions import region


@region("moejax.swiglu")
def swiglu(x: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array) -> jax.Array:
    """(silu(x @ gate) * (x @ up)) @ down: [..., D] -> [..., D]. F is the hidden width."""
    return (jax.nn.silu(x @ gate_DF) * (x @ up_DF)) @ down_FD


class SwiGLU(nn.Module):
    """A gated MLP: [..., D] -> [..., D] in x's dtype; params gate, up [D, F], down [F, D].

    With `use_bias` gate_bias, up_bias [F] and down_bias [D] too.
    """

    d_ff: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        sizes = {"gate": (width, self.d_ff), "up": (width, self.d_ff), "down": (self.d_ff, width)}
        kernels = {
            name: self.param(name, FAN_IN, size).astype(x.dtype) for name, size in sizes.items()
        }
        if not self.use_bias:
            return swiglu(x, kernels["gate"], kernels["up"], kernels["down"])
        biases = {
            name: self.param(f"{name}_bias", nn.initializers.zeros, size[1:]).astype(x.dtype)
            for name, size in sizes.items()
        }
        gate = linear(x, kernels["gate"], biases["gate"], activation="silu")
        hidden = gate * linear(x, kernels["up"], biases["up"])
        return linear(hidden, kernels["down"], biases["down"])
