"""Published sizes of the language model, by name."""

from collections.abc import Callable
from dataclasses import replace

from moejax.layers.latent_attention import LatentAttentionConfig
from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig


def llama3_8b() -> LMConfig:
    """Llama 3 8B: 8,030,261,248 parameters, all dense."""
    return LMConfig(
        vocab_size=128_256,
        d_model=4096,
        num_layers=32,
        d_ff=14_336,
        attention=_heads(32, 8, 128, rope=RopeConfig(base=500_000.0)),
        norm_eps=1e-5,
        max_len=8192,
    )


def mixtral_8x7b() -> LMConfig:
    """Mixtral 8x7B: 46,702,792,704 parameters, 2 of 8 experts."""
    return LMConfig(
        vocab_size=32_000,
        d_model=4096,
        num_layers=32,
        d_ff=14_336,
        attention=_heads(32, 8, 128, rope=RopeConfig(base=1e6)),
        moe=_moe(4096, 14_336, RoutingConfig(num_experts=8, top_k=2)),
        norm_eps=1e-5,
        max_len=32_768,
    )


def olmoe_1b_7b() -> LMConfig:
    """OLMoE 1B-7B: 6,919,161,856 parameters, 8 of 64 experts, weights not renormalised."""
    return LMConfig(
        vocab_size=50_304,
        d_model=2048,
        num_layers=16,
        d_ff=1024,
        attention=_heads(16, 16, 128, qk_norm="full", norm_eps=1e-5),
        moe=_moe(2048, 1024, RoutingConfig(num_experts=64, top_k=8, normalise=False)),
        norm_eps=1e-5,
        max_len=4096,
    )


def qwen3_30b_a3b() -> LMConfig:
    """Qwen3 30B-A3B: 30,532,122,624 parameters, 8 of 128 experts."""
    return LMConfig(
        vocab_size=151_936,
        d_model=2048,
        num_layers=48,
        d_ff=6144,
        attention=_heads(32, 4, 128, qk_norm="head", rope=RopeConfig(base=1e6)),
        moe=_moe(2048, 768, RoutingConfig(num_experts=128, top_k=8)),
        max_len=32_768,
    )


def deepseek_v2_lite() -> LMConfig:
    """DeepSeek-V2-Lite: 15,706,484,224 parameters, latent attention, 2 shared experts."""
    routing = RoutingConfig(num_experts=64, top_k=6, normalise=False)
    return LMConfig(
        vocab_size=102_400,
        d_model=2048,
        num_layers=27,
        d_ff=10_944,
        attention=LatentAttentionConfig(
            num_heads=16,
            head_dim=128,
            rope_dim=64,
            value_dim=128,
            latent_rank=512,
            rope=RopeConfig(interleaved=True),
        ),
        moe=replace(_moe(2048, 1408, routing), num_shared_experts=2),
        dense_layers=(0,),
        max_len=4096,
    )


SIZES: dict[str, Callable[[], LMConfig]] = {
    size.__name__: size
    for size in (llama3_8b, mixtral_8x7b, olmoe_1b_7b, qwen3_30b_a3b, deepseek_v2_lite)
}


def _heads(num_heads: int, num_kv_heads: int, head_dim: int, **fields) -> AttentionConfig:
    return AttentionConfig(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, **fields
    )


def _moe(d_model: int, d_ff: int, routing: RoutingConfig) -> MoEConfig:
    """Experts without capacity, as the published models have them."""
    return MoEConfig(d_model=d_model, d_ff=d_ff, routing=routing, capacity=None)
