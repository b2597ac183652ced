"""Stacked experts: E MLPs with their weights along a leading axis.

Parameters are a dict. "up" [E, D, H] and "down" [E, H, D] make an MLP with exact GELU; with
"gate" [E, D, H] it is a SwiGLU. Each may have a bias, "up_bias" [E, H] and so on. H is the hidden
width of an expert. Sums are taken in float32; hidden values have the dtype of the input.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.layers.init import FAN_IN, STACKED_FAN_IN
from moejax.layers.linear import activate
from moejax.regions import region

Params = dict[str, jax.Array]


def num_experts(params: Params) -> int:
    """E of stacked parameters."""
    return params["down"].shape[0]


def project(x: jax.Array, params: Params, name: str) -> jax.Array:
    """x @ kernel + bias in float32: [..., D] -> [..., H] for one expert's parameters, or for all
    of them with x [E, C, D].
    """
    y = jnp.matmul(x, params[name], preferred_element_type=jnp.float32)
    if f"{name}_bias" in params:
        bias = jnp.expand_dims(params[f"{name}_bias"], -2)
        y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape).astype(y.dtype)
    return y


def pre_activations(x: jax.Array, params: Params) -> tuple[jax.Array, ...]:
    """(gate, up) of a SwiGLU or (up,) of an MLP, float32."""
    return tuple(project(x, params, name) for name in ("gate", "up") if name in params)


def combine_activations(pre: tuple[jax.Array, ...]) -> jax.Array:
    """silu(gate) * up, or gelu(up)."""
    if len(pre) == 1:
        return activate(pre[0], "gelu")
    return activate(pre[0], "silu") * pre[1]


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """x in another dtype; into float16 without overflow."""
    if jnp.dtype(dtype) == jnp.float16 and x.dtype != jnp.float16:
        largest = jnp.finfo(jnp.float16).max.astype(x.dtype)
        x = jnp.clip(x, -largest, largest)
    return x.astype(dtype)


def expert_mlp(x: jax.Array, params: Params) -> jax.Array:
    """One expert on [..., D], or each on its own rows [E, C, D]; float32 of the same shape."""
    hidden = combine_activations(pre_activations(x, params))
    return project(narrow(hidden, x.dtype), params, "down")


@region("moejax.experts_dense")
def experts_dense(x_TD: jax.Array, combine_TE: jax.Array, params: Params) -> jax.Array:
    """Sum over all experts of weight times output: [T, D] -> float32 [T, D].

    Matmuls, a multiplication and a sum: no sort, no gather, no shape that depends on data. An
    expert without weight for a token has no say in it, whatever its output.
    """
    shape = num_experts(params), *x_TD.shape
    y_ETD = expert_mlp(jnp.broadcast_to(x_TD[None], shape), params)
    weight_ET1 = combine_TE.T[:, :, None].astype(jnp.float32)
    return jnp.sum(weight_ET1 * y_ETD, axis=0)


@region("moejax.experts_indexed")
def experts_indexed(
    x_TD: jax.Array, index_Tk: jax.Array, weight_Tk: jax.Array, params: Params
) -> jax.Array:
    """The same from the weights of the chosen experts alone: [T, D] -> float32 [T, D].

    Copies k experts for each token, so it is for a few tokens. index must be below E.
    """
    num_tokens, k = index_Tk.shape
    chosen = jax.tree.map(lambda leaf: leaf[index_Tk.reshape(-1)], params)
    x_A1D = jnp.repeat(x_TD, k, axis=0)[:, None, :]
    y_TkD = expert_mlp(x_A1D, chosen).reshape(num_tokens, k, -1)
    return jnp.sum(weight_Tk[:, :, None].astype(jnp.float32) * y_TkD, axis=1)


@region("moejax.combine_weights", float32=True)
def combine_weights(index_Tk: jax.Array, weight_Tk: jax.Array, *, num_experts: int) -> jax.Array:
    """The weights as a matrix [T, E], 0 for experts that were not chosen; others are left out."""
    experts_E = jnp.arange(num_experts, dtype=index_Tk.dtype)
    hit_TkE = index_Tk[:, :, None] == experts_E[None, None, :]
    return jnp.sum(jnp.where(hit_TkE, weight_Tk[:, :, None], 0.0), axis=1)


class Experts(nn.Module):
    """Parameters of one MLP, or of a stack of `num_experts`: names and shapes as above."""

    d_model: int
    d_ff: int
    kind: str
    use_bias: bool
    num_experts: int | None = None

    @nn.compact
    def __call__(self) -> Params:
        stack = () if self.num_experts is None else (self.num_experts,)
        init = FAN_IN if self.num_experts is None else STACKED_FAN_IN
        sizes = {"up": (self.d_model, self.d_ff), "down": (self.d_ff, self.d_model)}
        if self.kind == "swiglu":
            sizes["gate"] = sizes["up"]
        params = {name: self.param(name, init, (*stack, *size)) for name, size in sizes.items()}
        if self.use_bias:
            for name, (_, width) in sizes.items():
                bias = self.param(f"{name}_bias", nn.initializers.zeros, (*stack, width))
                params[f"{name}_bias"] = bias
        return params
