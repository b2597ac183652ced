"""T5: an encoder-decoder with relative positions, as transformers runs published checkpoints.

N heads, S tokens of the encoder, U of the decoder, R = B * samples rows of the decoder, V tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from moejax.checks import require_choice, require_positive, require_probability
from moejax.layers.attention import causal_mask
from moejax.layers.cache import Layer
from moejax.layers.embedding import embedding
from moejax.layers.linear import linear
from moejax.layers.t5 import (
    FEED_FORWARDS,
    FeedForward,
    T5Attention,
    T5FeedForward,
    T5Norm,
    position_bias,
    stored,
)

_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """Names as in config.json of transformers; `initializer_factor` is 0.05 where Chronos trains.

    `dtype`: of activations ("float32" or "bfloat16"). Parameters keep their own.
    """

    vocab_size: int = 4096
    d_model: int = 256
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 4
    num_decoder_layers: int = 4
    num_heads: int = 4
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward: FeedForward = "relu"
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.1
    tie_word_embeddings: bool = True
    initializer_factor: float = 0.05
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        for name in (*_SIZES, "relative_attention_num_buckets"):
            require_positive(name, getattr(self, name))
        require_choice("feed_forward", self.feed_forward, FEED_FORWARDS)
        require_choice("dtype", self.dtype, ("float32", "bfloat16"))
        require_probability("dropout_rate", self.dropout_rate)
        if self.relative_attention_num_buckets % 4:
            raise ValueError(
                f"relative_attention_num_buckets is {self.relative_attention_num_buckets}; it must"
                " be a multiple of 4: two directions, near and far"
            )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ValueError(
                f"relative_attention_max_distance is {self.relative_attention_max_distance}; it"
                f" must exceed half of the {self.relative_attention_num_buckets} buckets"
            )
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be from 0 to {self.vocab_size - 1}"
                )


class Block(nn.Module):
    """x + attention(norm(x)), in a decoder x + cross_attention(norm(x)), then x + ffn(norm(x))."""

    config: T5Config
    decoder: bool = False

    def setup(self):
        config = self.config
        factor = config.initializer_factor
        norm = partial(T5Norm, config.layer_norm_epsilon, factor)
        heads = partial(T5Attention, config.d_model, config.num_heads, config.d_kv, factor)
        self.attention_norm, self.attention = norm(), heads()
        if self.decoder:
            self.cross_norm, self.cross = norm(), heads()
        self.ffn_norm = norm()
        self.ffn = T5FeedForward(
            config.d_model, config.d_ff, config.feed_forward, config.dropout_rate, factor
        )
        self.dropout = nn.Dropout(config.dropout_rate)

    def key_values(self, states_BSD: jax.Array) -> Layer:
        """Of the encoder's states, for the cross-attention."""
        return self.cross.key_values(states_BSD)

    def __call__(
        self,
        x_RSD: jax.Array,
        mask: jax.Array | None,
        bias: jax.Array,
        memory: Layer | None = None,
        memory_mask: jax.Array | None = None,
        layer: Layer | None = None,
        start: Any = None,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, Layer]:
        """x and the block's keys and values: its own, or the cache `layer` with them at `start`."""
        drop = partial(self.dropout, deterministic=not train)
        normed = self.attention_norm(x_RSD)
        new = self.attention.key_values(normed)
        layer = new if layer is None else stored(layer, new, start)
        x_RSD = x_RSD + drop(self.attention(normed, layer, mask, bias))
        if memory is not None:
            y_RSD = self.cross(self.cross_norm(x_RSD), memory, memory_mask)
            x_RSD = x_RSD + drop(y_RSD)
        y_RSD = self.ffn(self.ffn_norm(x_RSD), train=train)
        return x_RSD + drop(y_RSD), layer


class Encoder(nn.Module):
    """Token embeddings x [B, S, D], mask [B, S] (true: a token) -> states [B, S, D]."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array, *, train: bool = False) -> jax.Array:
        config = self.config
        drop = nn.Dropout(config.dropout_rate, deterministic=not train)
        bias = encoder_bias(
            self.param("relative_bias", *bias_table(config)), x_BSD.shape[1], config
        )
        mask = mask_BS.astype(bool)[:, None, None, :]
        x_BSD = drop(x_BSD)
        for index in range(config.num_layers):
            self.sow("intermediates", "hidden", x_BSD)
            x_BSD, _ = Block(config, name=f"blocks_{index}")(x_BSD, mask, bias, train=train)
        norm = T5Norm(config.layer_norm_epsilon, config.initializer_factor, name="final_norm")
        x_BSD = drop(norm(x_BSD))
        self.sow("intermediates", "hidden", x_BSD)
        return x_BSD


def bias_table(config: T5Config) -> tuple[Any, tuple[int, int]]:
    """Initialiser and shape of a stack's table of relative positions."""
    init = nn.initializers.normal(config.initializer_factor * config.d_model**-0.5)
    return init, (config.relative_attention_num_buckets, config.num_heads)


def encoder_bias(table_RN: jax.Array, steps: int, config: T5Config) -> jax.Array:
    """float32 [1, N, S, S]."""
    distance = config.relative_attention_max_distance
    return position_bias(table_RN, steps, steps, bidirectional=True, max_distance=distance)


class DecoderBlocks(nn.Module):
    """The decoder's blocks from `first` to before `last`."""

    config: T5Config
    first: int
    last: int

    def setup(self):
        self.blocks = [Block(self.config, decoder=True) for _ in range(self.first, self.last)]

    def memory(self, states_BSD: jax.Array) -> tuple[Layer, ...]:
        """Keys and values of the encoder's states, a layer for each block."""
        return tuple(block.key_values(states_BSD) for block in self.blocks)

    def __call__(
        self,
        x_RUD: jax.Array,
        mask: jax.Array,
        bias: jax.Array,
        memory: tuple[Layer, ...],
        memory_mask: jax.Array,
        cache: tuple[Layer, ...] | None = None,
        start: Any = None,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, tuple[Layer, ...]]:
        layers = []
        for index, block in enumerate(self.blocks):
            layer = None if cache is None else cache[index]
            x_RUD, layer = block(
                x_RUD, mask, bias, memory[index], memory_mask, layer, start, train=train
            )
            layers.append(layer)
        return x_RUD, tuple(layers)


def decoder_view(
    table_RN: jax.Array, steps: int, config: T5Config, slots: int | None = None, start: Any = 0
) -> tuple[jax.Array, jax.Array]:
    """(mask [1, 1, U, T], bias [1, N, U, T]) of U tokens: among themselves, or those at slots from
    `start` on of a cache of T.
    """
    keys = steps if slots is None else slots
    distance = config.relative_attention_max_distance
    bias = position_bias(table_RN, keys, keys, bidirectional=False, max_distance=distance)
    mask = causal_mask(keys, keys)
    if slots is None:
        return mask, bias
    rows = partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=steps, axis=2)
    return rows(mask), rows(bias)


class Decoder(nn.Module):
    """Embeddings x [R, U, D] of the tokens so far, memory of `memory(states)` -> [R, U, D].

    The result is after the final norm, before any rescaling. `num_blocks`: the first so many blocks
    only, and `finish` then ends what follows them.
    """

    config: T5Config
    num_blocks: int | None = None

    def setup(self):
        config = self.config
        last = config.num_decoder_layers if self.num_blocks is None else self.num_blocks
        self.relative_bias = self.param("relative_bias", *bias_table(config))
        self.stack = DecoderBlocks(config, 0, last)
        self.final_norm = T5Norm(config.layer_norm_epsilon, config.initializer_factor)
        self.dropout = nn.Dropout(config.dropout_rate)

    def memory(self, states_BSD: jax.Array) -> tuple[Layer, ...]:
        """See DecoderBlocks."""
        return self.stack.memory(states_BSD)

    def view(self, steps: int, slots: int | None = None, start: Any = 0):
        """See decoder_view."""
        return decoder_view(self.relative_bias, steps, self.config, slots, start)

    def blocks(self, x_RUD, view, memory, memory_mask, cache=None, start=None, *, train=False):
        """The blocks without the norm: x and their keys and values."""
        x_RUD = self.dropout(x_RUD, deterministic=not train)
        mask, bias = view
        return self.stack(x_RUD, mask, bias, memory, memory_mask, cache, start, train=train)

    def finish(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """The final norm."""
        return self.dropout(self.final_norm(x), deterministic=not train)


def new_cache(config: T5Config, rows: int, slots: int, layers: int) -> tuple[Layer, ...]:
    """Empty caches of so many layers, each [R, N, T, H]."""
    shape = rows, config.num_heads, slots, config.d_kv
    dtype = jnp.dtype(config.dtype)
    return tuple(
        {name: jnp.zeros(shape, dtype) for name in ("key", "value")} for _ in range(layers)
    )


@partial(
    jax.tree_util.register_dataclass, data_fields=["layers", "mask", "experts"], meta_fields=[]
)
@dataclass(frozen=True)
class Memory:
    """What a decoder reads of its contexts: keys and values a layer, mask [B, 1, 1, S].

    `experts`: what a mixture has chosen for them.
    """

    layers: tuple[Layer, ...]
    mask: jax.Array
    experts: Any = None


class T5(nn.Module):
    """ids [B, S], mask [B, S] (true: a token), decoder_ids [B, U] -> logits float32 [B, U, V]."""

    config: T5Config

    def setup(self):
        config = self.config
        init = nn.initializers.normal(config.initializer_factor)
        self.shared = self.param("shared", init, (config.vocab_size, config.d_model))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if not config.tie_word_embeddings:
            shape = config.d_model, config.vocab_size
            self.lm_head = self.param("lm_head", init, shape)

    def __call__(
        self,
        ids_BS: jax.Array,
        mask_BS: jax.Array,
        decoder_ids_BU: jax.Array,
        *,
        train: bool = False,
    ) -> jax.Array:
        memory = self.remember(self.encode(ids_BS, mask_BS, train=train), mask_BS)
        return self.decode(decoder_ids_BU, memory, train=train)[0]

    def encode(self, ids_BS: jax.Array, mask_BS: jax.Array, *, train: bool = False) -> jax.Array:
        """The encoder's states [B, S, D]."""
        return self.encoder(self.embed(ids_BS), mask_BS, train=train)

    def remember(self, states_BSD: jax.Array, mask_BS: jax.Array) -> Memory:
        """What decoding needs of the states."""
        return Memory(self.decoder.memory(states_BSD), mask_BS.astype(bool)[:, None, None, :])

    def prepare(self, ids_BS: jax.Array, mask_BS: jax.Array) -> Memory:
        """What decoding needs of the contexts."""
        return self.remember(self.encode(ids_BS, mask_BS), mask_BS)

    def start_cache(self, rows: int, slots: int) -> tuple[Layer, ...]:
        """An empty cache of the decoder."""
        return new_cache(self.config, rows, slots, self.config.num_decoder_layers)

    def decode(
        self,
        ids_RU: jax.Array,
        memory: Memory,
        cache: tuple[Layer, ...] | None = None,
        start: Any = None,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, tuple[Layer, ...]]:
        """Logits float32 [R, U, V], and the cache with these tokens at the slots from `start`."""
        slots = None if cache is None else cache[0]["key"].shape[2]
        view = self.decoder.view(ids_RU.shape[1], slots, start)
        x_RUD, cache = self.decoder.blocks(
            self.embed(ids_RU), view, memory.layers, memory.mask, cache, start, train=train
        )
        x_RUD = self.decoder.finish(x_RUD, train=train)
        self.sow("intermediates", "decoder_hidden", x_RUD)
        return self.logits(x_RUD), cache

    def embed(self, ids: jax.Array) -> jax.Array:
        """Rows of the shared table, in the config's dtype."""
        return embedding(ids, self.shared).astype(self.config.dtype)

    def logits(self, x_RUD: jax.Array) -> jax.Array:
        """float32 [R, U, V]."""
        if self.config.tie_word_embeddings:
            x_RUD = x_RUD * self.config.d_model**-0.5
            kernel_DV = self.shared.T
        else:
            kernel_DV = self.lm_head
        return linear(x_RUD, kernel_DV.astype(x_RUD.dtype)).astype(jnp.float32)
