"""Where the tokens of a call stand, and the keys and values of the tokens before them.

A cache has T slots for each sequence. Its rows are written side by side: a call's tokens take the
slots from `length` on in every sequence, padding included; `mask` says which slots hold a token.
M key heads, H features of a head.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moejax.layers.attention import causal_mask
from moejax.regions import region

# What a layer keeps: "key" and "value", or "latent" and "rope_key" (latent attention).
Layer = dict[str, jax.Array]


@region("moejax.kv_update")
def kv_update(cache_BMTH: jax.Array, new_BMSH: jax.Array, start: jax.Array) -> jax.Array:
    """The cache with new rows at the slots start..start + S - 1, in its own dtype."""
    new_BMSH = new_BMSH.astype(cache_BMTH.dtype)
    return lax.dynamic_update_slice_in_dim(cache_BMTH, new_BMSH, start, axis=2)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["layers", "mask", "length", "next_position"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Cache:
    """layers: one dict of [B, M, T, H] arrays a layer. mask [B, T] bool: the slot holds a token.

    length [] int32: slots written so far. next_position [B] int32: that of a sequence's next token.
    """

    layers: tuple[Layer, ...]
    mask: jax.Array
    length: jax.Array
    next_position: jax.Array

    @property
    def num_slots(self) -> int:
        """T."""
        return self.mask.shape[1]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["positions", "keep", "segments", "start"],
    meta_fields=["limit", "num_slots", "causal"],
)
@dataclass(frozen=True)
class Span:
    """The S tokens of a call: their positions, and the keys that they may see.

    positions [B, S] or [S], below `limit` if that is stated. keep [B, S or T] bool: keys that are
    tokens. segments [B, S] int: a token sees those of its own segment only. start: the slot of the
    first token, where there is a cache; None: the call's own tokens are the only keys. num_slots:
    slots of the cache to write, or of the one to read.
    """

    positions: Any
    keep: jax.Array | None = None
    segments: jax.Array | None = None
    start: jax.Array | None = None
    limit: int | None = None
    num_slots: int | None = None
    causal: bool = True

    def visible(self, num_steps: int, window: int | None = None) -> tuple[Any, bool]:
        """(mask, causal) for `attention`; with `window`, a token sees so many, itself included."""
        if self.start is not None:
            return self._visible_slots(num_steps, window), False
        mask = None if self.keep is None else self.keep[:, None, None, :]
        if self.segments is not None:
            same = self.segments[:, None, :, None] == self.segments[:, None, None, :]
            mask = same if mask is None else mask & same
        if window is not None and window < num_steps:
            near = causal_mask(num_steps, num_steps) & ~causal_mask(num_steps, num_steps, -window)
            mask = near if mask is None else mask & near
        return mask, self.causal

    def _visible_slots(self, num_steps: int, window: int | None) -> jax.Array:
        """bool [B, 1, S, T]."""
        assert self.keep is not None
        assert self.start is not None
        slots_T = jnp.arange(self.keep.shape[1])
        own_S1 = (self.start + jnp.arange(num_steps))[:, None]
        seen_ST = slots_T[None, :] <= own_S1
        if window is not None:
            seen_ST &= slots_T[None, :] > own_S1 - window
        return seen_ST[None, None] & self.keep[:, None, None, :]

    def store(self, new: Layer, layer: Layer | None) -> Layer | None:
        """The layer's cache with the call's keys in it; None where no cache is kept."""
        if layer is not None:
            return {name: kv_update(layer[name], new[name], self.start) for name in new}
        if self.num_slots is None:
            return None
        return {name: _with_slots(rows, self.num_slots) for name, rows in new.items()}


def _with_slots(rows_BMSH: jax.Array, num_slots: int) -> jax.Array:
    empty = num_slots - rows_BMSH.shape[2]
    return jnp.pad(rows_BMSH, ((0, 0), (0, 0), (0, empty), (0, 0)))


def own_span(
    num_steps: int,
    mask_BS: jax.Array | None = None,
    positions: Any = None,
    *,
    segments_BS: jax.Array | None = None,
    num_slots: int | None = None,
    causal: bool = True,
) -> Span:
    """A call whose own tokens are the only keys.

    Positions count a sequence's tokens from 0 on (those of a segment, with segments), unless given.
    """
    limit = num_steps
    if positions is not None:
        limit = None
    elif segments_BS is not None:
        positions = _positions_in_segments(segments_BS)
    elif mask_BS is not None:
        positions = jnp.maximum(jnp.cumsum(mask_BS.astype(jnp.int32), axis=-1) - 1, 0)
    else:
        positions = np.arange(num_steps)
    keep = None if mask_BS is None else mask_BS.astype(bool)
    return Span(positions, keep, segments_BS, None, limit, num_slots, causal)


def next_span(cache: Cache, mask_BS: jax.Array, positions: Any = None) -> tuple[Span, Cache]:
    """A call that continues a cache, and the cache with its tokens counted in (keys not yet)."""
    counts_BS = jnp.cumsum(mask_BS.astype(jnp.int32), axis=-1)
    limit = None
    if positions is None:
        positions = jnp.maximum(cache.next_position[:, None] + counts_BS - 1, 0)
        limit = cache.num_slots
    keep = lax.dynamic_update_slice_in_dim(cache.mask, mask_BS.astype(bool), cache.length, axis=1)
    span = Span(positions, keep, None, cache.length, limit, cache.num_slots)
    counted = replace(
        cache,
        mask=keep,
        length=cache.length + mask_BS.shape[1],
        next_position=cache.next_position + counts_BS[:, -1],
    )
    return span, counted


def new_cache(layers: tuple[Layer, ...], mask_BS: jax.Array, num_slots: int) -> Cache:
    """The cache after a first call with this mask."""
    empty = num_slots - mask_BS.shape[1]
    return Cache(
        layers,
        jnp.pad(mask_BS.astype(bool), ((0, 0), (0, empty))),
        jnp.asarray(mask_BS.shape[1], jnp.int32),
        jnp.sum(mask_BS, axis=-1, dtype=jnp.int32),
    )


def _positions_in_segments(segments_BS: jax.Array) -> jax.Array:
    """[B, S]: how many tokens of its own segment stand before each token."""
    steps = jnp.arange(segments_BS.shape[1], dtype=jnp.int32)[None, :]
    first = jnp.concatenate(
        [
            jnp.ones_like(segments_BS[:, :1], bool),
            segments_BS[:, 1:] != segments_BS[:, :-1],
        ],
        axis=1,
    )
    return steps - lax.cummax(jnp.where(first, steps, 0), axis=1)
