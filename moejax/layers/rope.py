"""Rotary position embedding: pairs of features turned by an angle that grows with the position.

W is the number of features that turn, at most the width H of a head; the rest passes through.
"""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.regions import region


def rope_tables(
    positions: np.ndarray, width: int, *, base: float = 10_000.0, interleaved: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) of the angles, both float32 [S, W], for positions [S] and an even width W.

    Feature pair i turns by position * base^(-2i/W). A pair is (i, i + W/2), or (2i, 2i + 1) with
    `interleaved`. ValueError for an odd width.
    """
    if width < 2 or width % 2:
        raise ValueError(f"width is {width}; rotated features come in pairs, so give an even width")
    angles = np.outer(positions, base ** (-np.arange(0, width, 2) / width))
    angles = np.repeat(angles, 2, axis=1) if interleaved else np.concatenate([angles, angles], 1)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@region("moejax.rope")
def rope(
    x: jax.Array, cos_SW: jax.Array, sin_SW: jax.Array, *, interleaved: bool = False
) -> jax.Array:
    """The first W features of x turned by the tables' angles: [..., S, H] -> [..., S, H]."""
    width = cos_SW.shape[-1]
    turning, rest = x[..., :width], x[..., width:]
    cos, sin = (table.reshape((1,) * (x.ndim - 2) + table.shape) for table in (cos_SW, sin_SW))
    turned = turning * cos + quarter_turn(turning, interleaved=interleaved) * sin
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def quarter_turn(x: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Each pair (a, b) of features becomes (-b, a)."""
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
        return jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)
