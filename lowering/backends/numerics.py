"""Device number formats on the host: bfloat16, block floats, TF32. Every array is float32.

Measured behaviour of ttnn on the Wormhole simulator; each function says what it copies.
"""

import jax
import jax.numpy as jnp

from lowering.ir import DType


def round_to(x: jax.Array, dtype: DType) -> jax.Array:
    """`x` as a device tensor of `dtype` holds it: nearest, ties to even."""
    if dtype == "bfloat16":
        return x.astype(jnp.bfloat16).astype(jnp.float32)
    if dtype == "bfloat8_b":
        return round_to_block(x, mantissa_bits=7)
    return x


def round_to_block(x: jax.Array, *, mantissa_bits: int) -> jax.Array:
    """Block float: 16 neighbours of a row share one exponent; mantissas have no hidden bit."""
    x = jnp.atleast_1d(x)
    size = x.shape[-1]
    blocks = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % 16)]).reshape(*x.shape[:-1], -1, 16)
    peak = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    exponent = jnp.floor(jnp.log2(jnp.where(peak > 0, peak, 1.0)))
    step = jnp.exp2(exponent - (mantissa_bits - 1))
    limit = 2.0**mantissa_bits - 1
    rounded = jnp.clip(jnp.round(blocks / step), -limit, limit) * step
    return rounded.reshape(*x.shape[:-1], -1)[..., :size]


def truncate_mantissa(x: jax.Array, bits: int) -> jax.Array:
    """float32 cut (not rounded) to `bits` stored mantissa bits: 10 is TF32."""
    mask = jnp.uint32((0xFFFFFFFF << (23 - bits)) & 0xFFFFFFFF)
    return jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(x, jnp.uint32) & mask, jnp.float32
    )


def round_half_away(x: jax.Array) -> jax.Array:
    """To bfloat16 with ties away from zero: what bfloat16 add and subtract do."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + 0x8000) & jnp.uint32(0xFFFF0000), jnp.float32)
