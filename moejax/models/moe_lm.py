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
from moejax.watch import watch

# Labels of this value take no part in the loss.
IGNORED = -100
# What `remat` keeps beside the inputs of layers.
REMAT = {
    "layers": jax.checkpoint_policies.nothing_saveable,
    "all_but_matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclass(frozen=True, kw_only=True)
class LMConfig:
    """Sizes and habits of a model.

    `d_ff`: hidden width of the dense layers, which are all where `moe` is None and else those of
    `dense_layers`. `window_layers`: the layers that attention.window holds for; None: all.
    `max_len`: the longest text, prompt and continuation together. `block`: attention, then the
    feed-forward part ("sequential"), or both on the same input ("parallel"), whose sum is then
    multiplied by `layer_scale` before it is added, and the whole by `final_scale`. `flexible_ffn`:
    layers with an MoE have an MLP too; a learned share a says how much each counts, a g MoE and
    1 - a g MLP, g the schedule's warm-up. `debug`: print activations (moejax/watch.py).
    `tied_head`: logits from the embedding. `dtype`: of activations; parameters are cast to it where
    they are used, while router, softmax, norms' statistics and logits are float32. `remat`: what
    is computed again for the gradient instead of kept: nothing, the inside of "layers", or that
    without its matmuls with weights ("all_but_matmuls").
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
    layer_scale: float = 1.0
    final_scale: float = 1.0
    flexible_ffn: bool = False
    debug: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["nothing", "layers", "all_but_matmuls"] = "nothing"

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "num_layers", "d_ff", "max_len"):
            require_positive(name, getattr(self, name))
        require_choice("block", self.block, ("sequential", "parallel"))
        require_choice("dtype", self.dtype, ("float32", "bfloat16"))
        require_choice("remat", self.remat, ("nothing", *REMAT))
        for name in ("dense_layers", "window_layers"):
            wrong = [i for i in getattr(self, name) or () if not 0 <= i < self.num_layers]
            if wrong:
                raise ValueError(f"{name} has {wrong}; layers are 0 to {self.num_layers - 1}")
        if self.moe is not None and self.moe.d_model != self.d_model:
            raise ValueError(f"moe.d_model is {self.moe.d_model}; the model's is {self.d_model}")
        if self.moe is None and self.flexible_ffn:
            raise ValueError(
                "flexible_ffn is set without an MoE to weigh against the MLP: moe=None"
            )
        if self.block == "sequential" and (self.layer_scale, self.final_scale) != (1, 1):
            raise ValueError(
                f"layer_scale is {self.layer_scale} and final_scale {self.final_scale}; they belong"
                " to block='parallel'"
            )
        if self.moe is not None and self.moe.gating_residual:
            raise ValueError(
                "moe.gating_residual is set; layers of a language model hand on no router logits:"
                " use MoELayer in a model of your own"
            )
        if self.moe is not None and self.moe.routing.allow_non_causal:
            raise ValueError(
                f"routing strategy {self.moe.routing.strategy!r} looks at later tokens; a language"
                " model predicts them"
            )

    def is_sparse(self, index: int) -> bool:
        """Whether layer `index` has an MoE."""
        return self.moe is not None and index not in self.dense_layers

    @property
    def moe_of_layers(self) -> MoEConfig | None:
        """The MoE of every sparse layer; with `flexible_ffn` the warm-up is that of the share."""
        if self.moe is None or not self.flexible_ffn:
            return self.moe
        return replace(self.moe, schedule=replace(self.moe.schedule, warmup_steps=0))

    @property
    def tokens_are_independent(self) -> bool:
        """Whether, outside training, feed-forward parts see each token by itself."""
        moe = self.moe
        return moe is None or (moe.eval_capacity is None and moe.semantic_routing != "context")

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
            moe = config.moe_of_layers
            assert moe is not None
            self.moe = MoELayer(moe)
            if config.flexible_ffn:
                self.moe_share = self.param("moe_share", nn.initializers.zeros, ())
        if config.flexible_ffn or not config.is_sparse(self.index):
            self.mlp = SwiGLU(config.d_ff, config.mlp_bias)

    def __call__(
        self,
        x_BSD: jax.Array,
        span: Span,
        layer: Layer | None,
        mask_BS: jax.Array | None,
        step: jax.Array | None,
        train: bool,
        last_only: bool = False,
    ) -> tuple[jax.Array, Layer | None]:
        attended_BSD, stored = self.attention(self.attention_norm(x_BSD), span, layer)
        if last_only:
            x_BSD, attended_BSD = x_BSD[:, -1:], attended_BSD[:, -1:]
            mask_BS = None if mask_BS is None else mask_BS[:, -1:]
        if self.config.block == "parallel":
            y_BSD = self._ffn(self.ffn_norm(x_BSD), mask_BS, step, train)
            self._watch(attention_output=attended_BSD, ffn_output=y_BSD)
            added_BSD = _scaled(attended_BSD + y_BSD, self.config.layer_scale)
            return _scaled(x_BSD + added_BSD, self.config.final_scale), stored
        x_BSD = x_BSD + attended_BSD
        y_BSD = self._ffn(self.ffn_norm(x_BSD), mask_BS, step, train)
        self._watch(attention_output=attended_BSD, ffn_output=y_BSD)
        return x_BSD + y_BSD, stored

    def _watch(self, **values: jax.Array) -> None:
        watch(self, self.config.debug, **values)

    def _ffn(self, x_BSD, mask_BS, step, train: bool) -> jax.Array:
        if not self.config.is_sparse(self.index):
            return self.mlp(x_BSD)
        self.sow("intermediates", "moe_input", x_BSD)
        y_BSD = self.moe(x_BSD, mask_BS, step=step, train=train)
        self.sow("intermediates", "moe_output", y_BSD)
        if not self.config.flexible_ffn:
            return y_BSD
        assert self.config.moe is not None
        share = jax.nn.sigmoid(self.moe_share) * self.config.moe.schedule.warmup(step)
        return (share * y_BSD + (1 - share) * self.mlp(x_BSD)).astype(x_BSD.dtype)


def _scaled(x: jax.Array, factor: float) -> jax.Array:
    return x if factor == 1 else x * factor


class CausalLM(nn.Module):
    """Token numbers [B, S] -> LMOutput: what may come next after each token.

    `mask` [B, S]: true for tokens, anywhere in a row; others are neither seen nor routed, and what
    is computed for them is not defined. `positions` [B, S] default to the count of the tokens
    before; `segments` [B, S] keep the texts of a packed row apart. With `cache_size`, the call's
    keys come back in a cache of so many slots; with a `cache`, the call continues it (see
    `moejax.layers.cache`; the caller sees to it that S slots are free). `last_only`: logits of
    the row's last column only; in a `lean` model the last layer's feed-forward part then sees that
    column alone. `step`: see `moejax.moe.schedule`.
    Collections: params; router_state where the router has a correction bias; sown where mutable:
    moe (as MoELayer) and intermediates (`hidden`: embedding, then every layer's output, the last
    behind the final norm; `moe_input`, `moe_output` [B, S, D] of each MoE layer) and debug
    (moejax/watch.py). Rng "router" as MoELayer.
    """

    config: LMConfig
    lean: bool = False

    def setup(self):
        config = self.config
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (config.vocab_size, config.d_model))
        layer = DecoderLayer
        if config.remat != "nothing":
            layer = nn.remat(DecoderLayer, static_argnums=(6, 7), policy=REMAT[config.remat])
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
        if segments_BS is not None or cache is not None or cache_size is not None:
            self._check_context()
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
        early = self.lean and last_only and not train and self.config.tokens_are_independent
        for index, (run, layer) in enumerate(zip(self.layers, before, strict=True)):
            self.sow("intermediates", "hidden", x_BSD)
            last = early and index == self.config.num_layers - 1
            x_BSD, kept = run(x_BSD, span, layer, mask_BS, step, train, last)
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

    def _check_context(self) -> None:
        moe = self.config.moe
        if moe is not None and moe.semantic_routing == "context":
            raise ValueError(
                "semantic_routing 'context' reads a mean over the whole row, which neither a cache"
                " nor packed texts keep; use 'token'"
            )

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


def token_losses(logits_BSV: jax.Array, targets_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy in nats, squared logsumexp), float32 [B, S], 0 where the target is IGNORED."""
    counted = targets_BS != IGNORED
    logits_BSV = logits_BSV.astype(jnp.float32)
    total_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
    index = jnp.where(counted, targets_BS, 0)[..., None]
    chosen_BS = jnp.take_along_axis(logits_BSV, index, axis=-1)[..., 0]
    nats_BS = jnp.where(counted, total_BS - chosen_BS, 0.0)
    return nats_BS, jnp.where(counted, total_BS**2, 0.0)


def next_token_loss(logits_BSV: jax.Array, labels_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean cross-entropy in nats, mean squared logsumexp) of predicting the next label.

    Logits at i stand against the label at i + 1; labels of -100 take no part. Both are 0 where
    there is none.
    """
    targets_BS = labels_BS[:, 1:]
    nats_BS, squares_BS = token_losses(logits_BSV[:, :-1], targets_BS)
    count = jnp.maximum(jnp.sum(targets_BS != IGNORED), 1)
    return jnp.sum(nats_BS) / count, jnp.sum(squares_BS) / count
