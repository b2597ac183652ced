"""Gated feed-forward blocks."""

import jax

from moejax.regions import region


@region("moejax.swiglu")
def swiglu(x: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array) -> jax.Array:
    """(silu(x @ gate) * (x @ up)) @ down: [..., D] -> [..., D]. F is the hidden width."""
    return (jax.nn.silu(x @ gate_DF) * (x @ up_DF)) @ down_FD
