"""The transformer block: causality, padding, heads and norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.moe.block import BlockConfig, MoEBlock
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig

SIZES = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6}


def make(x, routing=None, attention=None, **fields):
    routing = RoutingConfig(num_experts=4, **(routing or {}))
    moe = MoEConfig(d_model=x.shape[-1], d_ff=8, routing=routing)
    heads = AttentionConfig(**SIZES | (attention or {}))
    block = MoEBlock(BlockConfig(moe=moe, attention=heads, **fields))
    return block, block.init(jax.random.key(0), x)


@pytest.fixture
def x(getkey):
    return jax.random.normal(getkey(), (2, 7, 10))


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("attention", [{}, {"num_kv_heads": 4, "use_bias": True}])
def test_causal_blocks_see_no_future(x, norm, attention):
    block, variables = make(x, norm=norm, attention=attention)
    y = jax.jit(block.apply)(variables, x)
    assert y.shape == x.shape
    np.testing.assert_allclose(block.apply(variables, x[:, :4]), y[:, :4], atol=1e-5)
    block, variables = make(x, norm=norm, causal=False, attention=attention)
    y = block.apply(variables, x)
    assert np.abs(block.apply(variables, x[:, :4]) - y[:, :4]).max() > 1e-3


def test_padding_is_not_seen(x):
    block, variables = make(x, causal=False)
    padded = jnp.concatenate([x, 9 * jnp.ones((2, 3, 10))], axis=1)
    mask = jnp.arange(10)[None] < jnp.asarray([[7], [7]])
    y = block.apply(variables, padded, mask)
    np.testing.assert_allclose(y[:, :7], block.apply(variables, x), atol=1e-5)


def test_positions_matter_only_with_rope(x):
    swapped = x[:, ::-1]
    for rope, moved in ((None, False), (RopeConfig(), True)):
        block, variables = make(x, causal=False, attention={"rope": rope})
        difference = np.abs(block.apply(variables, swapped)[:, ::-1] - block.apply(variables, x))
        assert (difference.max() > 1e-3) == moved


def test_dropout_and_gradients(x):
    block, variables = make(x, dropout=0.5)

    def loss(params, seed):
        y = block.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(seed)})
        return jnp.sum(y**2)

    gradient = jax.grad(loss)(variables["params"], 0)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    assert loss(variables["params"], 0) != loss(variables["params"], 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": {"num_kv_heads": 3}}, "multiple of num_kv_heads"),
        ({"attention": {"head_dim": 5}}, "head_dim is 5"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_configs(x, fields, message):
    with pytest.raises(ValueError, match=message):
        make(x, **fields)


def test_a_router_that_looks_ahead_is_no_use_in_a_causal_block(x):
    looking = {"strategy": "expert_choice", "allow_non_causal": True}
    with pytest.raises(ValueError, match="cannot serve a causal block"):
        make(x, looking)
    make(x, looking, causal=False)
