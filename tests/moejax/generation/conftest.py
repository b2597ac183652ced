"""A tiny model with experts, with parameters large enough that its tokens vary."""

import jax
import jax.numpy as jnp
import pytest

from moejax.generation.generate import Generator
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import CausalLM, LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig

CONFIG = LMConfig(
    vocab_size=61,
    d_model=16,
    num_layers=2,
    d_ff=24,
    max_len=40,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=4),
    moe=MoEConfig(d_model=16, d_ff=24, routing=RoutingConfig(num_experts=4), dispatch="dense"),
    dense_layers=(0,),
)


@pytest.fixture(scope="session")
def generator() -> Generator:
    """Keeps what it compiles, for all tests."""
    model = CausalLM(CONFIG)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    return Generator(CONFIG, jax.tree.map(lambda leaf: 4 * leaf, variables))
