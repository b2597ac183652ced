"""Tiny language models of every published kind, and of the project's own: name -> LMConfig."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.layers.latent_attention import LatentAttentionConfig
from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import CausalLM, LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig

SIZES = {"vocab_size": 96, "d_model": 64, "num_layers": 2, "d_ff": 96, "max_len": 128}
DEEPSEEK_V3 = RoutingConfig(
    num_experts=8,
    top_k=2,
    strategy="noaux_tc",
    score="sigmoid",
    num_groups=4,
    top_groups=2,
    scale=2.5,
)
LATENT = LatentAttentionConfig(
    num_heads=4,
    head_dim=32,
    rope_dim=16,
    value_dim=32,
    latent_rank=32,
    query_rank=48,
    rope=RopeConfig(interleaved=True),
)


def _heads(head_dim: int = 32, **options) -> AttentionConfig:
    return AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=head_dim, **options)


def _experts(routing: RoutingConfig, **options) -> MoEConfig:
    return MoEConfig(d_model=64, d_ff=32, routing=routing, capacity=None, **options)


MIXTRAL = LMConfig(**SIZES, attention=_heads(), moe=_experts(RoutingConfig(num_experts=4)))
LANGUAGE_MODELS: dict[str, LMConfig] = {
    "llama": LMConfig(**SIZES, attention=_heads(16)),
    "mixtral": MIXTRAL,
    "qwen3-moe": LMConfig(
        **SIZES,
        attention=_heads(qk_norm="head"),
        moe=_experts(RoutingConfig(num_experts=8, top_k=4)),
    ),
    "deepseek-v3": LMConfig(
        **SIZES,
        attention=LATENT,
        moe=_experts(DEEPSEEK_V3, num_shared_experts=1),
        dense_layers=(0,),
    ),
    "null-expert": LMConfig(
        **SIZES,
        attention=_heads(),
        moe=_experts(
            RoutingConfig(
                num_experts=4,
                top_k=2,
                strategy="noaux_tc",
                score="sigmoid",
                free_experts=("zero",),
            ),
            num_shared_experts=1,
            token_importance=True,
            semantic_routing="token",
        ),
    ),
}


def random_variables(config: LMConfig, seed: int = 0) -> Any:
    """Numbers of trained size for every variable, none of them uniform."""
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes = jax.eval_shape(CausalLM(config).init, jax.random.key(0), ids)
    rng = np.random.default_rng(seed)

    def numbers(path, leaf):
        drawn = rng.standard_normal(leaf.shape)
        if "scale" in jax.tree_util.keystr(path):
            return (1 + 0.1 * drawn).astype(np.float32)
        fan_in = leaf.shape[-2] if leaf.ndim > 1 else 100
        return (drawn / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(numbers, shapes)
