"""Self-attention with grouped key heads, rotated positions and a cache.

N query heads, M key heads, H the width of a head.
"""

from dataclasses import dataclass, field
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.checks import require_choice, require_positive
from moejax.layers.attention import attention
from moejax.layers.cache import Layer, Span
from moejax.layers.init import FAN_IN
from moejax.layers.linear import linear
from moejax.layers.norm import Norm
from moejax.layers.rope import RopeConfig, rope, rope_rows


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """`num_heads` query heads that share `num_kv_heads` key heads of width `head_dim`.

    `use_bias`: biases of query, key and value; `output_bias`: of the output. `qk_norm`: RMS norm of
    queries and keys before they turn, over each head (Qwen3) or over all heads together (OLMoE).
    `clip`: bound on the entries of queries, keys and values, after that norm. `window`: keys that
    a token sees, itself included. `rope` None: no positions (the caller has added them).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    use_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["head", "full"] | None = None
    clip: float | None = None
    window: int | None = None
    rope: RopeConfig | None = field(default_factory=RopeConfig)
    norm_eps: float = 1e-6

    def __post_init__(self):
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            require_positive(name, getattr(self, name))
        require_choice("qk_norm", self.qk_norm, (None, "head", "full"))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}; it must be a multiple of num_kv_heads, which is"
                f" {self.num_kv_heads}"
            )
        if self.rope is not None and self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotated positions need an even one")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it must be positive, or None")
        if self.window is not None:
            require_positive("window", self.window)


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(H)) v over the keys that the span allows.

    Shapes: x [B, S, D] -> [B, S, D], and the layer's cache with this call's keys, [B, M, T, H].
    """

    config: AttentionConfig

    @nn.compact
    def __call__(
        self, x_BSD: jax.Array, span: Span, layer: Layer | None = None
    ) -> tuple[jax.Array, Layer | None]:
        config = self.config
        q_BNSH = self._heads(x_BSD, "query", config.num_heads)
        k_BMSH = self._heads(x_BSD, "key", config.num_kv_heads)
        v_BMSH = self._heads(x_BSD, "value", config.num_kv_heads)
        if config.rope is not None:
            tables = rope_tables(config.rope, config.head_dim, span)
            q_BNSH, k_BMSH = (
                rope(heads, *tables, interleaved=config.rope.interleaved)
                for heads in (q_BNSH, k_BMSH)
            )
        new = {"key": k_BMSH, "value": v_BMSH}
        stored = span.store(new, layer)
        seen = new if layer is None or stored is None else stored
        mask, causal = span.visible(x_BSD.shape[1], config.window)
        y_BNSH = attention(
            q_BNSH,
            seen["key"].astype(x_BSD.dtype),
            seen["value"].astype(x_BSD.dtype),
            mask,
            scale=config.head_dim**-0.5,
            causal=causal,
        )
        y_BSI = y_BNSH.transpose(0, 2, 1, 3).reshape(*x_BSD.shape[:2], -1)
        return project(self, y_BSI, "output", x_BSD.shape[-1], config.output_bias), stored

    def _heads(self, x_BSD: jax.Array, name: str, count: int) -> jax.Array:
        """[B, S, D] -> [B, count, S, H]."""
        config = self.config
        y = project(self, x_BSD, name, count * config.head_dim, config.use_bias)
        normed = name != "value"
        if normed and config.qk_norm == "full":
            y = Norm("rms_norm", config.norm_eps, name=f"{name}_norm")(y)
        y = y.reshape(*x_BSD.shape[:2], count, -1)
        if normed and config.qk_norm == "head":
            y = Norm("rms_norm", config.norm_eps, name=f"{name}_norm")(y)
        if config.clip is not None:
            y = jnp.clip(y, -config.clip, config.clip)
        return y.transpose(0, 2, 1, 3)


def rope_tables(config: RopeConfig, width: int, span: Span) -> tuple[jax.Array, jax.Array]:
    """cos and sin for the span's tokens, [S, W] or [B, 1, S, W]."""
    cos, sin = rope_rows(config, width, span.positions, limit=span.limit)
    return (cos, sin) if cos.ndim == 2 else (cos[:, None], sin[:, None])


def project(
    module: nn.Module, x: jax.Array, name: str, width: int, use_bias: bool = False
) -> jax.Array:
    """x @ kernel (+ bias) in x's dtype, [..., I] -> [..., width]; the module gets the parameters
    `name` [I, width] and `name`_bias [width].
    """
    kernel = module.param(name, FAN_IN, (x.shape[-1], width)).astype(x.dtype)
    if not use_bias:
        return linear(x, kernel)
    bias = module.param(f"{name}_bias", nn.initializers.zeros, (width,))
    return linear(x, kernel, bias.astype(x.dtype))
