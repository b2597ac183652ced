"""MOIRAI-MoE: a decoder of patches of many series, with routed experts and a mixture at its end.

Liu et al., 2024; every detail as the published code computes it. Its router has no parameters: a
token goes to the experts whose centroids are FARTHEST from it, the farther the heavier. Other
routers are options.

T tokens of a row, P cells of the largest patch, N heads of width H, R tokens that are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.checks import require_choice, require_positive, require_probability
from moejax.distributions import Distribution, DistributionConfig
from moejax.layers.norm import Norm
from moejax.layers.packed_attention import PackedAttention, PackedSpan, packed_span, pick
from moejax.layers.packed_scaler import packed_scale, standardise
from moejax.layers.patch_linear import (
    PatchFeatures,
    PatchHead,
    PatchInput,
    cells,
    split_by_name,
)
from moejax.moe.config import RoutingConfig
from moejax.moe.dispatch import Implementation
from moejax.moe.layer import LossWeights, MoEConfig, MoELayer

NORM_EPS = 1e-5
HEAD_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class MoiraiMoEConfig:
    """Sizes and habits; the defaults are the published small model's.

    `d_ff`: width of each expert. There is a head for every 64 of `d_model`. `patch_sizes`: cells
    that a token may hold; arrays have room for the largest. `max_seq_len`: tokens of a row that
    the model is meant for. `scaling`: each series is standardised by what is observed of it.
    `routing`: by the "farthest" (published) or "nearest" centroids, or "learned" by a linear
    router with softmax, whose `losses` count in training. Shared experts have width `d_ff` each.
    `dropout` acts in training behind attention and behind the experts; `attention_dropout` in
    training on attention's weights (the published code leaves it on in inference). `dtype`: of
    activations; scaler, distances, norms' statistics and parameters of the distribution are
    float32.
    """

    d_model: int = 384
    d_ff: int = 512
    num_layers: int = 6
    patch_sizes: tuple[int, ...] = (16,)
    max_seq_len: int = 512
    dropout: float = 0.0
    attention_dropout: float = 0.0
    scaling: bool = True
    distribution: DistributionConfig = field(default_factory=DistributionConfig)
    routing: Literal["farthest", "nearest", "learned"] = "farthest"
    num_experts: int = 32
    top_k: int = 2
    num_shared_experts: int = 0
    losses: LossWeights = field(default_factory=LossWeights)
    dispatch: Implementation = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("d_model", "d_ff", "num_layers", "max_seq_len"):
            require_positive(name, getattr(self, name))
        if not self.patch_sizes or len(set(self.patch_sizes)) < len(self.patch_sizes):
            raise ValueError(f"patch_sizes is {self.patch_sizes}; give different sizes, at least 1")
        for size in self.patch_sizes:
            require_positive("patch_sizes", size)
        for name in ("dropout", "attention_dropout"):
            require_probability(name, getattr(self, name))
        require_choice("routing", self.routing, ("farthest", "nearest", "learned"))
        require_choice("dtype", self.dtype, ("float32", "bfloat16"))
        if self.d_model < HEAD_WIDTH or self.d_model % self.num_heads or self.head_dim % 4:
            raise ValueError(
                f"d_model is {self.d_model}; it must be at least {HEAD_WIDTH} and make"
                f" d_model // {HEAD_WIDTH} heads of a width that is a multiple of 4"
            )
        _ = self.moe  # its fields are checked too

    @property
    def num_heads(self) -> int:
        """Heads of attention."""
        return self.d_model // HEAD_WIDTH

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.d_model // self.num_heads

    @property
    def patch_length(self) -> int:
        """Cells that a token has room for."""
        return max(self.patch_sizes)

    @property
    def moe(self) -> MoEConfig:
        """The feed-forward part of every layer."""
        learned = self.routing == "learned"
        return MoEConfig(
            d_model=self.d_model,
            d_ff=self.d_ff,
            routing=RoutingConfig(
                num_experts=self.num_experts,
                top_k=self.top_k,
                score="softmax" if learned else "identity",
            ),
            num_shared_experts=self.num_shared_experts,
            capacity=None,
            dispatch=self.dispatch,
            losses=self.losses if learned else LossWeights(load_balance=0.0),
            centroids=None if self.routing == "learned" else self.routing,
        )


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("target", "observed_mask", "sample_id", "time_id", "variate_id"),
        *("prediction_mask", "patch_size"),
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Tokens:
    """Rows of patches, of one or several series each, in any order.

    target [B, T, P] float32, 0 where nothing is known; observed_mask [B, T, P] bool; sample_id
    [B, T] int32, 0 for padding; time_id, variate_id [B, T] int32; prediction_mask [B, T] bool, true
    for tokens that the scaler must not see; patch_size [B, T] int32.
    """

    target: Any
    observed_mask: Any
    sample_id: Any
    time_id: Any
    variate_id: Any
    prediction_mask: Any
    patch_size: Any

    def check(self, patch_length: int) -> None:
        """ValueError if shapes do not fit each other or the model."""
        shape = jnp.shape(self.target)
        if len(shape) != 3 or shape[2] != patch_length:
            raise ValueError(f"target has shape {shape}; it must be [B, T, {patch_length}]")
        if jnp.shape(self.observed_mask) != shape:
            raise ValueError(
                f"observed_mask has shape {jnp.shape(self.observed_mask)}; target has {shape}"
            )
        for name in ("sample_id", "time_id", "variate_id", "prediction_mask", "patch_size"):
            found = jnp.shape(getattr(self, name))
            if found != shape[:2]:
                raise ValueError(f"{name} has shape {found}; target needs {shape[:2]}")


def empty_tokens(config: MoiraiMoEConfig, batch: int = 1, tokens: int = 1) -> Tokens:
    """Rows of padding, for `init`."""
    row = batch, tokens
    cells = *row, config.patch_length
    ids, no = jnp.zeros(row, jnp.int32), jnp.zeros(row, bool)
    size = jnp.full(row, config.patch_sizes[0], jnp.int32)
    return Tokens(jnp.zeros(cells), jnp.zeros(cells, bool), ids, ids, ids, no, size)


class MoiraiLayer(nn.Module):
    """x + attention(norm(x)), then x + experts(norm(x)): [B, T, D] -> [B, T or R, D]."""

    config: MoiraiMoEConfig

    def setup(self):
        config = self.config
        self.attention_norm = Norm("rms_norm", NORM_EPS)
        self.attention = PackedAttention(config.num_heads, NORM_EPS, config.attention_dropout)
        self.ffn_norm = Norm("rms_norm", NORM_EPS)
        self.moe = MoELayer(config.moe)
        self.drop = nn.Dropout(config.dropout)

    def __call__(
        self, x_BTD: jax.Array, span: PackedSpan, last: bool = False, train: bool = False
    ) -> jax.Array:
        y_BTD = self.attention(self.attention_norm(x_BTD), span, last=last, train=train)
        self.sow("intermediates", "attn_out", y_BTD)
        if last and span.read is not None:
            x_BTD = pick(x_BTD, span.read)
        x_BTD = x_BTD + self.drop(y_BTD, deterministic=not train)
        y_BTD = self.ffn_norm(x_BTD)
        self.sow("intermediates", "ffn_in", y_BTD)
        y_BTD = self.moe(y_BTD, train=train)
        self.sow("intermediates", "ffn_out", y_BTD)
        x_BTD = x_BTD + self.drop(y_BTD, deterministic=not train)
        self.sow("intermediates", "out", x_BTD)
        return x_BTD


class MoiraiMoE(nn.Module):
    """Tokens -> the distribution of the patch behind each token, in the units of the target.

    The result's cells are [B, T, P]: those of token t describe the next patch of its series. With
    `read_at` [B, R] (numbers of tokens) they are [B, R, P], and the last layer works on those
    tokens alone. Collections: params; router_state with the centroids; sown where mutable: moe (as
    MoELayer) and intermediates (loc, scale, mask, in_proj, res_proj, feat_proj, encoder_in,
    encoder_out, raw; of each layer attn_out, ffn_in, ffn_out, out and its routing). Rngs in
    training: "dropout", and "router" as MoELayer. ValueError for shapes that do not fit.

    For a program of fixed sizes: `time_limit`, a number that all time_id are below, makes RoPE's
    angles rows of a table; `last_dispatch` is that of the last layer, which may have few tokens.
    """

    config: MoiraiMoEConfig
    time_limit: int | None = None
    last_dispatch: Implementation | None = None

    def setup(self):
        config = self.config
        self.in_proj = PatchInput(config.patch_sizes, config.d_model)
        self.res_proj = PatchInput(config.patch_sizes, config.d_model)
        self.feat_proj = PatchFeatures(config.patch_sizes)
        last = replace(config, dispatch=self.last_dispatch or config.dispatch)
        configs = [config] * (config.num_layers - 1) + [last]
        self.layers = [MoiraiLayer(config) for config in configs]
        self.final_norm = Norm("rms_norm", NORM_EPS)
        self.head = PatchHead(config.patch_sizes, config.distribution.args)

    def __call__(
        self, tokens: Tokens, *, read_at: jax.Array | None = None, train: bool = False
    ) -> Distribution:
        config = self.config
        y, loc, scale = self.outputs(tokens, read_at=read_at, train=train)
        if read_at is not None:
            loc, scale = pick(loc, read_at), pick(scale, read_at)
        raw = split_by_name(y, config.distribution.args)
        self.sow("intermediates", "raw", raw)
        return distribution(config.distribution, raw, loc, scale)

    def outputs(
        self, tokens: Tokens, *, read_at: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What the distribution is made of: the head's outputs [B, T or R, M], and location and
        scale of all tokens.
        """
        config = self.config
        tokens.check(config.patch_length)
        loc, scale = self.standard(tokens)
        x_BTD = self.embed(tokens, loc, scale)
        span = packed_span(
            tokens.sample_id,
            tokens.time_id,
            tokens.variate_id,
            width=config.head_dim // 2,
            read_BR=read_at,
            limit=self.time_limit,
        )
        self.sow("intermediates", "mask", span.mask)
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, span, index == config.num_layers - 1, train)
        x_BTD = self.final_norm(x_BTD)
        self.sow("intermediates", "encoder_out", x_BTD)
        patch_size = jnp.asarray(tokens.patch_size)
        if read_at is not None:
            patch_size = pick(patch_size, read_at)
        return self.head(x_BTD, patch_size), loc, scale

    def standard(self, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        """Location and scale of each token's series, [B, T, 1], or 0 and 1 [B, T, P]."""
        target_BTP = jnp.asarray(tokens.target, jnp.float32)
        loc, scale = jnp.zeros_like(target_BTP), jnp.ones_like(target_BTP)
        if self.config.scaling:
            counted = jnp.asarray(tokens.observed_mask, bool)
            counted &= ~jnp.asarray(tokens.prediction_mask, bool)[..., None]
            series = jnp.asarray(tokens.sample_id), jnp.asarray(tokens.variate_id)
            loc, scale = packed_scale(target_BTP, counted, *series)
        self.sow("intermediates", "loc", loc)
        self.sow("intermediates", "scale", scale)
        return loc, scale

    def embed(self, tokens: Tokens, loc: jax.Array, scale: jax.Array) -> jax.Array:
        """The input of the first layer, [B, T, D]. Unknown cells enter as (0 - loc) / scale."""
        x_BTP = standardise(jnp.asarray(tokens.target), loc, scale).astype(self.config.dtype)
        patch_size_BT = jnp.asarray(tokens.patch_size)
        inner_BTD = self.in_proj(x_BTP, patch_size_BT)
        features_BTD = self.feat_proj(jax.nn.silu(inner_BTD), patch_size_BT)
        residual_BTD = self.res_proj(x_BTP, patch_size_BT)
        x_BTD = features_BTD + residual_BTD
        for name, value in (
            ("in_proj_out", inner_BTD),
            ("feat_proj_out", features_BTD),
            ("res_proj_out", residual_BTD),
            ("encoder_in", x_BTD),
        ):
            self.sow("intermediates", name, value)
        return x_BTD


def distribution(
    config: DistributionConfig, raw: Mapping[str, jax.Array], loc: jax.Array, scale: jax.Array
) -> Distribution:
    """The distribution of every cell from a head's outputs {name: [B, T, N * P]}."""
    parts = {name: cells(raw[name].astype(jnp.float32), dim) for name, dim in config.args.items()}
    return Distribution(config=config, params=config.constrain(parts), loc=loc, scale=scale)
