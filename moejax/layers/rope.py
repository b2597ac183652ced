"""Rotary position embedding: pairs of features turned by an angle that grows with the position.

W is the number of features that turn, at most the width H of a head; the rest passes through. Su
et al., 2021; the kinds that stretch it to longer texts are those of published checkpoints.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from moejax.checks import require_choice, require_positive
from moejax.regions import region

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
# Kinds whose frequencies depend on the number of positions in use.
LENGTH_DEPENDENT = ("dynamic", "longrope")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Angles of positions: pair i turns by position * base^(-2i/W), changed by `kind`.

    "linear" divides the angles by `factor`. "dynamic" raises the base once the text is longer than
    `original_max_len`. "llama3" divides slow pairs (wavelength > original_max_len /
    low_freq_factor), leaves fast ones, blends between. "yarn" does so by the turns in
    original_max_len (beta_fast, beta_slow) and scales the tables by its attention factor.
    "longrope" divides pair i by short_factors[i], or by long_factors[i] once the text is longer.
    A pair is (i, i + W/2), or (2i, 2i + 1) with `interleaved`.
    """

    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"] = "default"
    base: float = 10_000.0
    interleaved: bool = False
    factor: float = 1.0
    original_max_len: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self):
        require_choice("kind", self.kind, KINDS)
        if not self.base > 1 or not self.factor > 0:
            raise ValueError(
                f"base is {self.base} and factor {self.factor}; base must be > 1, factor > 0"
            )
        if self.kind not in ("default", "linear"):
            require_positive("original_max_len", self.original_max_len)
        if self.kind == "llama3" and not self.high_freq_factor > self.low_freq_factor > 0:
            raise ValueError(
                f"low_freq_factor is {self.low_freq_factor} and high_freq_factor"
                f" {self.high_freq_factor}; 'llama3' needs 0 < low_freq_factor < high_freq_factor"
            )
        if self.kind == "longrope" and not (self.short_factors and self.long_factors):
            raise ValueError("kind 'longrope' needs short_factors and long_factors, one a pair")

    def frequencies(self, width: int, length: Any = 0) -> Any:
        """Angle of each pair at position 1, [W/2], when `length` positions are in use.

        float64 numpy, or a traced float32 array where `length` is one. ValueError for an odd width.
        """
        if width < 2 or width % 2:
            raise ValueError(
                f"width is {width}; rotated features come in pairs, so give an even width"
            )
        return _FREQUENCIES[self.kind](self, width, length)

    @property
    def original_len(self) -> int:
        """`original_max_len` of the kinds that need it."""
        assert self.original_max_len is not None
        return self.original_max_len

    @property
    def magnitude(self) -> float:
        """What the tables of cos and sin are multiplied by."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "longrope":
            if self.factor <= 1:
                return 1.0
            return math.sqrt(1 + math.log(self.factor) / math.log(self.original_len))
        if self.mscale and self.mscale_all_dim:
            return yarn_scale(self.factor, self.mscale) / yarn_scale(
                self.factor, self.mscale_all_dim
            )
        return yarn_scale(self.factor)


def yarn_scale(factor: float, weight: float = 1.0) -> float:
    """0.1 * weight * ln(factor) + 1, and 1 for a factor of at most 1."""
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def rope_rows(
    config: RopeConfig, width: int, positions: Any, *, limit: int | None = None
) -> tuple[Any, Any]:
    """(cos, sin), float32 [..., W], of the angles at integer positions [...].

    numpy positions give numpy tables, computed in float64. Traced positions, known to lie below
    `limit`, pick rows of such tables; without a limit, or where the frequencies depend on how many
    positions are in use, the angles are computed in float32.
    """
    if isinstance(positions, np.ndarray):
        length = int(positions.max(initial=-1)) + 1
        return _tables(config, positions, config.frequencies(width, length))
    if config.kind in LENGTH_DEPENDENT or limit is None:
        length = jnp.max(positions, initial=-1) + 1
        return _tables(config, positions, jnp.asarray(config.frequencies(width, length)))
    cos, sin = rope_rows(config, width, np.arange(limit))
    return jnp.asarray(cos)[positions], jnp.asarray(sin)[positions]


def _tables(config: RopeConfig, positions: Any, frequencies: Any) -> tuple[Any, Any]:
    xp = np if isinstance(frequencies, np.ndarray) else jnp
    angles = positions[..., None] * frequencies.reshape((1,) * positions.ndim + (-1,))
    if config.interleaved:
        angles = xp.repeat(angles, 2, axis=-1)
    else:
        angles = xp.concatenate([angles, angles], axis=-1)
    scale = config.magnitude
    cos, sin = xp.cos(angles), xp.sin(angles)
    return (scale * cos).astype(np.float32), (scale * sin).astype(np.float32)


@region("moejax.rope")
def rope(x: jax.Array, cos: jax.Array, sin: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """The first W features of x turned by the tables' angles: [..., S, H] -> [..., S, H].

    Tables are [S, W], or of x's rank with axes of size 1 where they repeat.
    """
    width = cos.shape[-1]
    turning, rest = x[..., :width], x[..., width:]
    if cos.ndim == 2:
        cos, sin = (table.reshape((1,) * (x.ndim - 2) + table.shape) for table in (cos, sin))
    turned = turning * cos + quarter_turn(turning, interleaved=interleaved) * sin
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def quarter_turn(x: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Each pair (a, b) of features becomes (-b, a)."""
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
        return jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def _powers(base: Any, width: int) -> Any:
    """base^(-2i/W) for each pair."""
    return base ** (-np.arange(0, width, 2) / width)


def _default(config: RopeConfig, width: int, _) -> np.ndarray:
    return _powers(config.base, width)


def _linear(config: RopeConfig, width: int, _) -> np.ndarray:
    return _powers(config.base, width) / config.factor


def _dynamic(config: RopeConfig, width: int, length: Any) -> Any:
    xp = jnp if isinstance(length, jax.Array) else np
    stretch = xp.maximum(length / config.original_len, 1)
    growth = config.factor * stretch - (config.factor - 1)
    return _powers(config.base * growth ** (width / (width - 2)), width)


def _llama3(config: RopeConfig, width: int, _) -> np.ndarray:
    frequencies = _powers(config.base, width)
    turns = config.original_len * frequencies / (2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / config.factor)


def _yarn(config: RopeConfig, width: int, _) -> np.ndarray:
    frequencies = _powers(config.base, width)
    low, high = (_pair_of(config, width, turns) for turns in (config.beta_fast, config.beta_slow))
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low if high != low else 0.001
    slow = np.clip((np.arange(width // 2) - low) / span, 0, 1)
    return frequencies * (1 - slow + slow / config.factor)


def _pair_of(config: RopeConfig, width: int, turns: float) -> float:
    """The (fractional) pair that makes so many turns in original_max_len positions."""
    length = config.original_len
    return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(config.base))


def _longrope(config: RopeConfig, width: int, length: Any) -> Any:
    xp = jnp if isinstance(length, jax.Array) else np
    for name in ("short_factors", "long_factors"):
        if len(getattr(config, name)) != width // 2:
            raise ValueError(
                f"{name} has {len(getattr(config, name))} numbers; {width} rotated features need"
                f" {width // 2}"
            )
    short, long = np.asarray(config.short_factors), np.asarray(config.long_factors)
    factors = xp.where(xp.asarray(length > config.original_len), long, short)
    return _powers(config.base, width) / factors


_FREQUENCIES = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
