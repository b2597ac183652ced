"""Multi-head latent attention: keys and values come from one small vector a token.

DeepSeek-V2, 2024. N heads; a head's query and key have H plain and W rotated features, its value V;
the rotated key is shared by all heads. R is the width of the latent, which is what a cache holds.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.checks import require_positive
from moejax.layers.attention import attention
from moejax.layers.cache import Layer, Span
from moejax.layers.init import FAN_IN
from moejax.layers.norm import Norm
from moejax.layers.rope import RopeConfig, rope
from moejax.layers.self_attention import project, rope_tables

# The published models use this for the two inner norms, whatever the others use.
LATENT_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig:
    """Widths of a head's plain (`head_dim`) and rotated (`rope_dim`) features and of its value.

    `query_rank`: width of the latent of the queries, None for a plain projection. `use_bias`:
    biases of the projections down to the latents and of the output. `score_scale` multiplies the
    scores beside 1 / sqrt(head_dim + rope_dim) (YaRN's correction).
    """

    num_heads: int
    head_dim: int
    rope_dim: int
    value_dim: int
    latent_rank: int
    rope: RopeConfig
    query_rank: int | None = None
    use_bias: bool = False
    score_scale: float = 1.0

    def __post_init__(self):
        for name in ("num_heads", "head_dim", "rope_dim", "value_dim", "latent_rank"):
            require_positive(name, getattr(self, name))
        if self.query_rank is not None:
            require_positive("query_rank", self.query_rank)
        if self.rope_dim % 2:
            raise ValueError(f"rope_dim is {self.rope_dim}; rotated features come in pairs")

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return self.score_scale * (self.head_dim + self.rope_dim) ** -0.5


class LatentAttention(nn.Module):
    """Attention whose keys and values are projections of a latent.

    Shapes: x [B, S, D] -> [B, S, D], and the layer's cache, latent [B, 1, T, R] and rope_key
    [B, 1, T, W]. With a cache the projection of the keys moves to the queries and that of the
    values behind the sum, so that all heads read the latents themselves.
    """

    config: LatentAttentionConfig

    @nn.compact
    def __call__(
        self, x_BSD: jax.Array, span: Span, layer: Layer | None = None
    ) -> tuple[jax.Array, Layer | None]:
        config = self.config
        tables = rope_tables(config.rope, config.rope_dim, span)
        turn = {"interleaved": config.rope.interleaved}
        q_BNSI = self._queries(x_BSD)
        plain_BNSH, turning_BNSW = jnp.split(q_BNSI, [config.head_dim], axis=-1)
        turned_BNSW = rope(turning_BNSW, *tables, **turn)
        down_BSI = project(
            self, x_BSD, "latent_down", config.latent_rank + config.rope_dim, config.use_bias
        )
        latent_BSR, key_BSW = jnp.split(down_BSI, [config.latent_rank], axis=-1)
        latent_BSR = Norm("rms_norm", LATENT_NORM_EPS, name="latent_norm")(latent_BSR)
        new = {"latent": latent_BSR[:, None], "rope_key": rope(key_BSW[:, None], *tables, **turn)}
        stored = span.store(new, layer)
        mask, causal = span.visible(x_BSD.shape[1])
        up_RNI = self._up(x_BSD.dtype)
        options = {"scale": config.scale, "causal": causal}
        if layer is None or stored is None:
            y_BNSV = _expanded(plain_BNSH, turned_BNSW, new, up_RNI, mask, options)
        else:
            y_BNSV = _absorbed(plain_BNSH, turned_BNSW, stored, up_RNI, mask, options)
        y_BSI = y_BNSV.transpose(0, 2, 1, 3).reshape(*x_BSD.shape[:2], -1)
        return project(self, y_BSI, "output", x_BSD.shape[-1], config.use_bias), stored

    def _queries(self, x_BSD: jax.Array) -> jax.Array:
        """[B, N, S, H + W]."""
        config = self.config
        width = config.num_heads * (config.head_dim + config.rope_dim)
        if config.query_rank is None:
            y_BSI = project(self, x_BSD, "query", width)
        else:
            y = project(self, x_BSD, "query_down", config.query_rank, config.use_bias)
            y = Norm("rms_norm", LATENT_NORM_EPS, name="query_norm")(y)
            y_BSI = project(self, y, "query_up", width)
        return y_BSI.reshape(*x_BSD.shape[:2], config.num_heads, -1).transpose(0, 2, 1, 3)

    def _up(self, dtype) -> jax.Array:
        """[R, N, H + V]: from the latent to a head's plain key and value."""
        config = self.config
        width = config.head_dim + config.value_dim
        kernel = self.param("latent_up", FAN_IN, (config.latent_rank, config.num_heads * width))
        return kernel.astype(dtype).reshape(config.latent_rank, config.num_heads, width)


def _expanded(plain_BNSH, turned_BNSW, new: Layer, up_RNI, mask, options) -> jax.Array:
    """Every head's own keys and values."""
    shape = *turned_BNSW.shape[:2], *new["rope_key"].shape[2:]
    both_BNSI = jnp.einsum("bsr,rni->bnsi", new["latent"][:, 0], up_RNI)
    key_BNSH, value_BNSV = jnp.split(both_BNSI, [plain_BNSH.shape[-1]], axis=-1)
    keys = jnp.concatenate([key_BNSH, jnp.broadcast_to(new["rope_key"], shape)], axis=-1)
    queries = jnp.concatenate([plain_BNSH, turned_BNSW], axis=-1)
    return attention(queries, keys, value_BNSV, mask, **options)


def _absorbed(plain_BNSH, turned_BNSW, stored: Layer, up_RNI, mask, options) -> jax.Array:
    """One shared key head: the latents."""
    dtype = plain_BNSH.dtype
    key_RNH, value_RNV = jnp.split(up_RNI, [plain_BNSH.shape[-1]], axis=-1)
    latent_queries = jnp.einsum("bnsh,rnh->bnsr", plain_BNSH, key_RNH)
    latent_B1TR, rope_key_B1TW = (stored[name].astype(dtype) for name in ("latent", "rope_key"))
    y_BNSR = attention(
        jnp.concatenate([latent_queries, turned_BNSW], axis=-1),
        jnp.concatenate([latent_B1TR, rope_key_B1TW], axis=-1),
        latent_B1TR,
        mask,
        **options,
    )
    return jnp.einsum("bnsr,rnv->bnsv", y_BNSR, value_RNV)
