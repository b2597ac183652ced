"""A transformer block whose feed-forward part is an MoE layer.

N query heads, M key heads, H the width of a head.
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax
import numpy as np

from moejax.checks import require_choice, require_positive, require_probability
from moejax.layers.attention import attention
from moejax.layers.linear import linear
from moejax.layers.norm import layer_norm, rms_norm
from moejax.layers.rope import rope, rope_tables
from moejax.moe.layer import INIT, MoEConfig, MoELayer


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Attention of `num_heads` query heads that share `num_kv_heads` key heads, then the MoE.

    `rope_base` None: no positions (the caller has added them). `use_bias`: biases of the attention
    projections. `dropout` acts on both branches in training.
    """

    moe: MoEConfig
    num_heads: int
    num_kv_heads: int
    head_dim: int
    causal: bool = True
    norm: Literal["layer_norm", "rms_norm"] = "rms_norm"
    norm_eps: float = 1e-5
    rope_base: float | None = 10_000.0
    use_bias: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("num_heads", "num_kv_heads", "head_dim"):
            require_positive(name, getattr(self, name))
        require_choice("norm", self.norm, ("layer_norm", "rms_norm"))
        require_probability("dropout", self.dropout)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}; it must be a multiple of num_kv_heads, which is"
                f" {self.num_kv_heads}"
            )
        if self.rope_base is not None and self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotated positions need an even one")
        if self.causal and self.moe.routing.allow_non_causal:
            raise ValueError(
                f"routing strategy {self.moe.routing.strategy!r} looks at later tokens; it cannot"
                " serve a causal block"
            )


class Norm(nn.Module):
    """Layer norm or RMS norm over the last axis: [..., D] -> [..., D]."""

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if self.kind == "rms_norm":
            return rms_norm(x, scale_D, eps=self.eps)
        bias_D = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale_D, bias_D, eps=self.eps)


class Attention(nn.Module):
    """Self-attention with grouped key heads and rotated positions 0..S-1.

    Shapes: x [B, S, D], mask [B, S] (true: a token) -> [B, S, D].
    """

    config: BlockConfig

    @nn.compact
    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array | None = None) -> jax.Array:
        config = self.config
        q_BNSH = self._heads(x_BSD, "query", config.num_heads)
        k_BMSH = self._heads(x_BSD, "key", config.num_kv_heads)
        v_BMSH = self._heads(x_BSD, "value", config.num_kv_heads)
        if config.rope_base is not None:
            steps = np.arange(x_BSD.shape[1])
            tables = rope_tables(steps, config.head_dim, base=config.rope_base)
            q_BNSH, k_BMSH = (rope(heads, *tables) for heads in (q_BNSH, k_BMSH))
        keys = None if mask_BS is None else mask_BS[:, None, None, :].astype(bool)
        scale = config.head_dim**-0.5
        y_BNSH = attention(q_BNSH, k_BMSH, v_BMSH, keys, scale=scale, causal=config.causal)
        y_BSI = y_BNSH.transpose(0, 2, 1, 3).reshape(*x_BSD.shape[:2], -1)
        return self._project(y_BSI, "output", x_BSD.shape[-1])

    def _heads(self, x_BSD: jax.Array, name: str, count: int) -> jax.Array:
        y_BSI = self._project(x_BSD, name, count * self.config.head_dim)
        return y_BSI.reshape(*x_BSD.shape[:2], count, -1).transpose(0, 2, 1, 3)

    def _project(self, x: jax.Array, name: str, width: int) -> jax.Array:
        kernel = self.param(name, INIT, (x.shape[-1], width)).astype(x.dtype)
        if not self.config.use_bias:
            return linear(x, kernel)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (width,))
        return linear(x, kernel, bias.astype(x.dtype))


class MoEBlock(nn.Module):
    """x + attention(norm(x)), then x + moe(norm(x)).

    Shapes: x [B, S, D], mask [B, S] (true: a token; others are neither seen nor routed)
    -> [B, S, D]. Collections and rngs as in MoELayer, and "dropout" in training with dropout.
    """

    config: BlockConfig

    def setup(self):
        config = self.config
        self.attention_norm = Norm(config.norm, config.norm_eps)
        self.attention = Attention(config)
        self.moe_norm = Norm(config.norm, config.norm_eps)
        self.moe = MoELayer(config.moe)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(
        self, x_BSD: jax.Array, mask_BS: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        y_BSD = self.attention(self.attention_norm(x_BSD), mask_BS)
        x_BSD = x_BSD + self.dropout(y_BSD, deterministic=not train)
        y_BSD = self.moe(self.moe_norm(x_BSD), mask_BS, train=train)
        return x_BSD + self.dropout(y_BSD, deterministic=not train)
