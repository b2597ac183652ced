"""A decoder-only language model whose feed-forward parts are MoE layers, MLPs, or some of each.

With `moe=None` it is exactly Llama; settings make it Mixtral, Qwen-MoE, OLMoE or DeepSeek (the
mapping of their published configs is in `moejax.interop.lm`). V is the vocabulary's size.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.checks import require_choice, require_positive
from moejax.layers.cache import Cache, Layer, Span, new_cache, next_span, own_span
from moejax.layers.embedding import embedding
from moejax.layers.latent_attention import LatentAttention, LatentAttentionConfig
from moejax.layers.linear import linear
from moejax.layers.mlp import SwiGLU
from moejax.layers.norm import Norm
from moejax.layers.self_attention import AttentionConfig, SelfAttention
from moejax.moe.layer import MoEConfig, MoELayer

# Labels of this value take no part in the loss.
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Sizes and habits of a model.

    `d_ff`: hidden width of the dense layers, which are all where `moe` is None and else those of
    `dense_layers`. `window_layers`: the layers that attention.window holds for; None: all.
    `max_len`: the longest text, prompt and continuation together. `block`: attention, then the
    feed-forward part ("sequential"), or both on the same input ("parallel"). `tied_head`: logits
    from the embedding. `dtype`: of activations; parameters are cast to it where they are used,
    while router, softmax, norms' statistics and logits are float32. `remat`: layers are computed
    again for the gradient instead of kept.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    d_ff: int
    attention: AttentionConfig | LatentAttentionConfig
    moe: MoEConfig | None = None
    dense_layers: tuple[int, ...] = ()
    window_layers: tuple[int, ...] | None = None
    max_len: int = 2048
    norm_eps: float = 1e-6
    mlp_bias: bool = False
    tied_head: bool = False
    block: Literal["sequential", "parallel"] = "sequential"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "num_layers", "d_ff", "max_len"):
            require_positive(name, getattr(self, name))
        require_choice("block", self.block, ("sequential", "parallel"))
        require_choice("dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("dense_layers", "window_layers"):
            wrong = [i for i in getattr(self, name) or () if not 0 <= i < self.num_layers]
            if wrong:
                raise ValueError(f"{name} has {wrong}; layers are 0 to {self.num_layers - 1}")
        if self.moe is not None and self.moe.d_model != self.d_model:
            raise ValueError(f"moe.d_model is {self.moe.d_model}; the model's is {self.d_model}")
        if self.moe is not None and self.moe.routing.allow_non_causal:
            raise ValueError(
                f"routing strategy {self.moe.routing.strategy!r} looks at later tokens; a language"
                " model predicts them"
            )

    def is_sparse(self, index: int) -> bool:
        """Whether layer `index` has an MoE."""
        return self.moe is not None and index not in self.dense_layers

    def attention_of(self, index: int) -> AttentionConfig | LatentAttentionConfig:
        """The attention of layer `index`."""
        if self.window_layers is None or index in self.window_layers:
            return self.attention
        if isinstance(self.attention, LatentAttentionConfig):
            return self.attention
        return replace(self.attention, window=None)


@partial(jax.tree_util.register_dataclass, data_fields=["logits", "cache"], meta_fields=[])
@dataclass(frozen=True)
class LMOutput:
    """logits [B, S, V] float32 ([B, 1, V] of the last token alone, where asked for); the cache."""

    logits: jax.Array
    cache: Cache | None


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)); or both of the same x, added.

    Shapes: x [B, S, D] -> [B, S, D] and the layer's cache.
    """

    config: LMConfig
    index: int

    def setup(self):
        config, norm = self.config, partial(Norm, "rms_norm", self.config.norm_eps)
        attention = config.attention_of(self.index)
        latent = isinstance(attention, LatentAttentionConfig)
        self.attention_norm = norm()
        self.attention = LatentAttention(attention) if latent else SelfAttention(attention)
        self.ffn_norm = norm()
        if config.is_sparse(self.index):
            assert config.moe is not None
            self.moe = MoELayer(config.moe)
        else:
            self.mlp = SwiGLU(config.d_ff, config.mlp_bias)

    def __call__(
        self,
        x_BSD: jax.Array,
        span: Span,
        layer: Layer | None,
        mask_BS: jax.Array | None,
        step: jax.Array | None,
        train: bool,
    ) -> tuple[jax.Array, Layer | None]:
        attended_BSD, stored = self.attention(self.attention_norm(x_BSD), span, layer)
        if self.config.block == "parallel":
            y_BSD = self._ffn(self.ffn_norm(x_BSD), mask_BS, step, train)
            return x_BSD + attended_BSD + y_BSD, stored
        x_BSD = x_BSD + attended_BSD
        return x_BSD + self._ffn(self.ffn_norm(x_BSD), mask_BS, step, train), stored

    def _ffn(self, x_BSD, mask_BS, step, train: bool) -> jax.Array:
        if not self.config.is_sparse(self.index):
            return self.mlp(x_BSD)
        self.sow("intermediates", "moe_input", x_BSD)
        y_BSD = self.moe(x_BSD, mask_BS, train=train)
        self.sow("intermediates", "moe_output", y_BSD)
        return y_BSD


class CausalLM(nn.Module):
    """Token numbers [B, S] -> LMOutput: what may come next after each token.

    `mask` [B, S]: true for tokens, anywhere in a row; others are neither seen nor routed, and what
    is computed for them is not defined. `positions` [B, S] default to the count of the tokens
    before; `segments` [B, S] keep the texts of a packed row apart. With `cache_size`, the call's
    keys come back in a cache of so many slots; with a `cache`, the call continues it (see
    `moejax.layers.cache`; the caller sees to it that S slots are free). `last_only`: logits of
    the row's last column only. `step`: see `moejax.moe.schedule`.
    Collections: params; router_state where the router has a correction bias; sown where mutable:
    moe (as MoELayer) and intermediates (`hidden`: embedding, then every layer's output, the last
    behind the final norm; `moe_input`, `moe_output` [B, S, D] of each MoE layer). Rng "router" as
    MoELayer.
    """

    config: LMConfig

    def setup(self):
        config = self.config
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (config.vocab_size, config.d_model))
        layer = nn.remat(DecoderLayer, static_argnums=(6,)) if config.remat else DecoderLayer
        self.layers = [layer(config, index) for index in range(config.num_layers)]
        self.final_norm = Norm("rms_norm", config.norm_eps)
        if not config.tied_head:
            self.head = self.param("head", init, (config.d_model, config.vocab_size))

    def __call__(
        self,
        ids_BS: jax.Array,
        mask_BS: jax.Array | None = None,
        *,
        positions_BS: jax.Array | None = None,
        segments_BS: jax.Array | None = None,
        cache: Cache | None = None,
        cache_size: int | None = None,
        last_only: bool = False,
        step: jax.Array | None = None,
        train: bool = False,
    ) -> LMOutput:
        self._check(ids_BS, mask_BS, cache, cache_size)
        if cache is None:
            span = own_span(
                ids_BS.shape[1],
                mask_BS,
                positions_BS,
                segments_BS=segments_BS,
                num_slots=cache_size,
            )
            before: tuple[Layer | None, ...] = (None,) * self.config.num_layers
        else:
            tokens = jnp.ones(ids_BS.shape, bool) if mask_BS is None else mask_BS
            span, cache = next_span(cache, tokens, positions_BS)
            before = cache.layers
        x_BSD = embedding(ids_BS, self.embedding).astype(self.config.dtype)
        stored = []
        for run, layer in zip(self.layers, before, strict=True):
            self.sow("intermediates", "hidden", x_BSD)
            x_BSD, kept = run(x_BSD, span, layer, mask_BS, step, train)
            stored.append(kept)
        if last_only:
            x_BSD = x_BSD[:, -1:]
        x_BSD = self.final_norm(x_BSD)
        self.sow("intermediates", "hidden", x_BSD)
        logits_BSV = self._logits(x_BSD)
        if cache is not None:
            return LMOutput(logits_BSV, replace(cache, layers=tuple(stored)))
        if cache_size is None:
            return LMOutput(logits_BSV, None)
        tokens = jnp.ones(ids_BS.shape, bool) if mask_BS is None else mask_BS
        return LMOutput(logits_BSV, new_cache(tuple(stored), tokens, cache_size))

    def _logits(self, x_BSD: jax.Array) -> jax.Array:
        kernel_DV = self.embedding.T if self.config.tied_head else self.head
        return linear(x_BSD, kernel_DV.astype(x_BSD.dtype)).astype(jnp.float32)

    def _check(self, ids_BS, mask_BS, cache: Cache | None, cache_size: int | None) -> None:
        if ids_BS.ndim != 2 or not jnp.issubdtype(ids_BS.dtype, jnp.integer):
            raise ValueError(
                f"ids are {ids_BS.dtype} of shape {ids_BS.shape}; they must be integers [B, S]"
            )
        if mask_BS is not None and mask_BS.shape != ids_BS.shape:
            raise ValueError(f"mask has shape {mask_BS.shape}; the ids have {ids_BS.shape}")
        if cache is not None and cache_size is not None:
            raise ValueError("cache and cache_size are both given; a call makes a cache or goes on")
        slots = cache_size if cache is None else cache.num_slots
        if slots is not None and slots < ids_BS.shape[1]:
            raise ValueError(f"{ids_BS.shape[1]} tokens do not fit a cache of {slots} slots")


def next_token_loss(logits_BSV: jax.Array, labels_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean cross-entropy in nats, mean squared logsumexp) of predicting the next label.

    Logits at i stand against the label at i + 1; labels of -100 take no part. Both are 0 where
    there is none.
    """
    labels = labels_BS[:, 1:]
    counted = labels != IGNORED
    logits = logits_BSV[:, :-1].astype(jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, jnp.where(counted, labels, 0)[..., None], axis=-1)
    count = jnp.maximum(jnp.sum(counted), 1)
    cross = jnp.sum(jnp.where(counted, total - target[..., 0], 0.0)) / count
    return cross, jnp.sum(jnp.where(counted, total**2, 0.0)) / count
