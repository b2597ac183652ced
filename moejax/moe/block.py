"""A transformer block whose feed-forward part is an MoE layer."""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax

from moejax.checks import require_choice, require_probability
from moejax.layers.cache import own_span
from moejax.layers.norm import Norm
from moejax.layers.self_attention import AttentionConfig, SelfAttention
from moejax.moe.layer import MoEConfig, MoELayer


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Attention, then the MoE, each behind a norm. `dropout` acts on both branches in training."""

    moe: MoEConfig
    attention: AttentionConfig
    causal: bool = True
    norm: Literal["layer_norm", "rms_norm"] = "rms_norm"
    norm_eps: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self):
        require_choice("norm", self.norm, ("layer_norm", "rms_norm"))
        require_probability("dropout", self.dropout)
        if self.causal and self.moe.routing.allow_non_causal:
            raise ValueError(
                f"routing strategy {self.moe.routing.strategy!r} looks at later tokens; it cannot"
                " serve a causal block"
            )
        if self.moe.gating_residual:
            raise ValueError(
                "gating_residual asks for the previous layer's logits, which a block doesn't take;"
                " use MoELayer in a model that passes them on"
            )


class MoEBlock(nn.Module):
    """x + attention(norm(x)), then x + moe(norm(x)).

    Shapes: x [B, S, D], mask [B, S] (true: a token; others are neither seen nor routed)
    -> [B, S, D]. Collections and rngs as in MoELayer, and "dropout" in training with dropout.
    """

    config: BlockConfig

    def setup(self):
        config = self.config
        self.attention_norm = Norm(config.norm, config.norm_eps)
        self.attention = SelfAttention(config.attention)
        self.moe_norm = Norm(config.norm, config.norm_eps)
        self.moe = MoELayer(config.moe)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(
        self, x_BSD: jax.Array, mask_BS: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        span = own_span(x_BSD.shape[1], mask_BS, causal=self.config.causal)
        y_BSD, _ = self.attention(self.attention_norm(x_BSD), span)
        x_BSD = x_BSD + self.dropout(y_BSD, deterministic=not train)
        y_BSD = self.moe(self.moe_norm(x_BSD), mask_BS, train=train)
        return x_BSD + self.dropout(y_BSD, deterministic=not train)
