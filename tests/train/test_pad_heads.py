"""Padded heads change nothing but the width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import CausalLM, LMConfig
from train.pad_heads import pad_heads

IDS = np.random.default_rng(0).integers(0, 31, (2, 9)).astype(np.int32)
YARN = RopeConfig(kind="yarn", factor=4.0, original_max_len=8)
LLAMA3 = RopeConfig(kind="llama3", factor=8.0, original_max_len=16)


def model(**options) -> LMConfig:
    attention = AttentionConfig(**{"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, **options})
    return LMConfig(vocab_size=31, d_model=24, num_layers=1, d_ff=16, attention=attention)


def logits(config, variables):
    variables = jax.tree.map(jnp.asarray, variables)
    return np.asarray(CausalLM(config).apply(variables, IDS).logits)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_dim": 40, "use_bias": True, "output_bias": True},
        {"qk_norm": "head", "rope": RopeConfig(interleaved=True)},
        {"qk_norm": "full", "rope": YARN},
        {"rope": LLAMA3},
        {"rope": None, "head_dim": 7},
    ],
    ids=str,
)
def test_padded_model_is_equal(options):
    config = model(**options)
    shapes = jax.eval_shape(CausalLM(config).init, jax.random.key(0), jnp.asarray(IDS))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(0.3, 0.5, leaf.shape).astype(np.float32), shapes
    )
    wide, padded = pad_heads(config, variables)
    assert wide.attention.head_dim % 32 == 0
    np.testing.assert_allclose(
        logits(wide, padded), logits(config, variables), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("options", [{"head_dim": 32}, {"clip": 4.0}], ids=str)
def test_left_as_it_is(options):
    config = model(**options)
    assert pad_heads(config, None) == (config, None)
