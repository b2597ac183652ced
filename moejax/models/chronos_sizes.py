"""The published sizes of Chronos-T5, and the number of parameters by formula.

The count of a mixture's parts is that of the community fork for its own layers.
"""

from dataclasses import replace

from moejax.models.chronos_config import ChronosConfig
from moejax.models.chronos_moe import own_layers
from moejax.models.t5 import T5Config


def _size(d_model: int, d_ff: int, layers: int, heads: int) -> T5Config:
    return T5Config(
        d_model=d_model,
        d_ff=d_ff,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
    )


TINY = _size(256, 1024, 4, 4)
MINI = _size(384, 1536, 4, 8)
SMALL = _size(512, 2048, 6, 8)
BASE = _size(768, 3072, 12, 12)
LARGE = _size(1024, 4096, 24, 16)
SIZES = {"tiny": TINY, "mini": MINI, "small": SMALL, "base": BASE, "large": LARGE}


def encoder_parameters(t5: T5Config) -> int:
    """Of an encoder: blocks, relative positions, final norm."""
    return t5.num_layers * _block(t5, attentions=1) + _table(t5) + t5.d_model


def decoder_block_parameters(t5: T5Config) -> int:
    """Of one block of the decoder."""
    return _block(t5, attentions=2)


def t5_parameters(t5: T5Config) -> int:
    """Of the whole dense model."""
    tables = t5.vocab_size * t5.d_model * (1 if t5.tie_word_embeddings else 2)
    decoder = t5.num_decoder_layers * decoder_block_parameters(t5) + _table(t5) + t5.d_model
    return tables + encoder_parameters(t5) + decoder


def router_parameters(t5: T5Config, moe: ChronosConfig) -> int:
    """Of the gate."""
    hidden, experts = moe.router_hidden_dim, moe.num_experts
    return t5.d_model * hidden + hidden + hidden * experts + experts


def expert_parameters(t5: T5Config, moe: ChronosConfig) -> int:
    """Of one expert, its decoder blocks included."""
    width = t5.d_model
    total = width * t5.vocab_size
    if moe.moe_architecture == "shared_then_expert":
        total += 8 * width**2 + 5 * width + (2 * width if moe.expert_norm else 0)
    elif moe.head_mode == "encoder":
        total += t5.num_layers * (12 * width**2 + 13 * width)
    else:
        total += encoder_parameters(t5)
    return total + own_layers(t5, moe) * decoder_block_parameters(t5)


def mixture_parameters(t5: T5Config, moe: ChronosConfig) -> int:
    """Of what a mixture computes with. The fork's own count is `fork_parameters`."""
    shared = t5_parameters(replace(t5, tie_word_embeddings=True))
    if moe.moe_architecture == "expert_only":
        shared -= encoder_parameters(t5)
    if moe.head_mode == "encoder":
        shared -= t5.num_decoder_layers * decoder_block_parameters(t5) + _table(t5) + t5.d_model
    else:
        shared -= own_layers(t5, moe) * decoder_block_parameters(t5)
    experts = moe.num_experts * expert_parameters(t5, moe)
    return shared + router_parameters(t5, moe) + experts


def fork_parameters(t5: T5Config, moe: ChronosConfig) -> int:
    """The community fork's count: with the whole dense model, used or not."""
    moe = replace(moe, head_mode="encoder")
    experts = moe.num_experts * expert_parameters(t5, moe)
    return t5_parameters(t5) + router_parameters(t5, moe) + experts


def _block(t5: T5Config, attentions: int) -> int:
    inner, matrices = t5.num_heads * t5.d_kv, 2 if t5.feed_forward == "relu" else 3
    ffn = matrices * t5.d_model * t5.d_ff
    return attentions * 4 * t5.d_model * inner + ffn + (attentions + 1) * t5.d_model


def _table(t5: T5Config) -> int:
    return t5.relative_attention_num_buckets * t5.num_heads
