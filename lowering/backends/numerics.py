"""Device number formats on the host: bfloat16, block floats, TF32. Every array is float32 numpy.

Measured behaviour of ttnn on the Wormhole simulator; each function says what it copies.
"""

import ml_dtypes
import numpy as np

from lowering.ir import DType


def round_to(x: np.ndarray, dtype: DType) -> np.ndarray:
    """`x` as a device tensor of `dtype` holds it: nearest, ties to even."""
    if dtype == "bfloat16":
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)
    if dtype == "bfloat8_b":
        return round_to_block(x, mantissa_bits=7)
    return x


def round_to_block(x: np.ndarray, *, mantissa_bits: int) -> np.ndarray:
    """Block float: 16 neighbours of a row share one exponent; mantissas have no hidden bit."""
    shape, x = x.shape, np.atleast_1d(x)
    size = x.shape[-1]
    blocks = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -size % 16)]).reshape(*x.shape[:-1], -1, 16)
    _, exponent = np.frexp(np.abs(blocks).max(axis=-1, keepdims=True))
    step = np.ldexp(np.float32(1), exponent - mantissa_bits)
    limit = np.float32(2**mantissa_bits - 1)
    rounded = np.clip(np.round(blocks / step), -limit, limit) * step
    return rounded.reshape(*x.shape[:-1], -1)[..., :size].reshape(shape)


def truncate_mantissa(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 cut (not rounded) to `bits` stored mantissa bits: 10 is TF32."""
    mask = np.uint32((0xFFFFFFFF << (23 - bits)) & 0xFFFFFFFF)
    return (x.view(np.uint32) & mask).view(np.float32)


def round_mantissa(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 rounded to `bits` stored mantissa bits: nearest, ties to even."""
    spare = 23 - bits
    whole = x.view(np.uint32)
    odd = (whole >> spare) & np.uint32(1)
    rounded = whole + np.uint32((1 << (spare - 1)) - 1) + odd
    return truncate_mantissa(rounded.view(np.float32), bits)


def round_half_away(x: np.ndarray) -> np.ndarray:
    """To bfloat16 with ties away from zero: what bfloat16 add and subtract do."""
    bits = x.view(np.uint32) + np.uint32(0x8000)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)
