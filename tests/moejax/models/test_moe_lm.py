"""The language model: caches, padding, packed rows, sizes, gradients."""

from dataclasses import replace
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.layers.latent_attention import LatentAttentionConfig
from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import CausalLM, LMConfig, next_token_loss
from moejax.models.moe_lm_sizes import SIZES
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
MOE = MoEConfig(d_model=32, d_ff=24, routing=RoutingConfig(num_experts=4), dispatch="dense")
LATENT = LatentAttentionConfig(
    num_heads=4,
    head_dim=8,
    rope_dim=4,
    value_dim=6,
    latent_rank=12,
    query_rank=10,
    rope=RopeConfig(kind="yarn", interleaved=True, factor=4.0, original_max_len=8),
)
CONFIGS = {
    "window": {"attention": AttentionConfig(**HEADS, window=4, qk_norm="head")},
    "biases": {
        "attention": AttentionConfig(
            **HEADS, use_bias=True, output_bias=True, clip=1.0, qk_norm="full"
        ),
        "tied_head": True,
        "dense_layers": (0,),
        "mlp_bias": True,
        "block": "parallel",
        "remat": "layers",
    },
    "latent": {"attention": LATENT},
}
S, SLOTS = 9, 12
IDS = np.random.default_rng(0).integers(0, 50, (2, S))


def build(name):
    config = LMConfig(vocab_size=50, d_model=32, num_layers=2, d_ff=48, moe=MOE, **CONFIGS[name])
    model = CausalLM(config)
    return model, jax.jit(model.init)(jax.random.key(0), IDS[:, :2])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cached_continuation_equals_the_whole(name):
    """Prefill of 4, a chunk of 2, single tokens."""
    model, variables = build(name)
    run = jax.jit(model.apply, static_argnames=("cache_size", "last_only"))
    whole = run(variables, IDS).logits
    out = run(variables, IDS[:, :4], cache_size=SLOTS)
    logits = [out.logits]
    for ids in (IDS[:, 4:6], *np.split(IDS[:, 6:], S - 6, axis=1)):
        out = run(variables, ids, cache=out.cache)
        logits.append(out.logits)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, atol=1e-5)
    assert int(out.cache.length) == S
    assert out.cache.next_position.tolist() == [S, S]


def test_padding_on_either_side_changes_nothing():
    model, variables = build("biases")
    run = jax.jit(model.apply, static_argnames=("cache_size", "last_only"))
    whole = run(variables, IDS).logits
    for left, right in ((3, 0), (0, 3)):
        pads = ((0, 0), (left, right))
        ids = np.pad(IDS, pads, constant_values=7)
        mask = np.pad(np.ones(IDS.shape, bool), pads)
        out = run(variables, ids, mask, cache_size=S + 4)
        np.testing.assert_allclose(out.logits[:, left : left + S], whole, atol=1e-5)
        # the next token continues after the real ones, wherever they lie
        more = run(variables, IDS[:, :1], cache=out.cache).logits[:, 0]
        both = run(variables, np.concatenate([IDS, IDS[:, :1]], axis=1)).logits[:, -1]
        np.testing.assert_allclose(more, both, atol=1e-5)


def test_packed_texts_do_not_see_each_other():
    model, variables = build("window")
    texts = model.apply(variables, IDS).logits
    segments = np.repeat([[3, 1]], S, axis=1)
    packed = model.apply(variables, IDS.reshape(1, -1), segments_BS=segments).logits
    np.testing.assert_allclose(packed.reshape(texts.shape), texts, atol=1e-5)
    last = model.apply(variables, IDS, last_only=True).logits
    np.testing.assert_allclose(last, texts[:, -1:], atol=1e-6)


@pytest.mark.parametrize("name", ["biases", "latent"])
def test_every_parameter_learns(name):
    model, variables = build(name)

    @jax.jit
    def gradient(params):
        def loss(params):
            out = model.apply({**variables, "params": params}, IDS, train=True)
            return next_token_loss(out.logits, IDS)[0]

        return jax.grad(loss)(params)

    for path, leaf in jax.tree.leaves_with_path(gradient(variables["params"])):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_next_token_loss():
    logits = jnp.log(jnp.asarray([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [1.0, 1.0, 1.0]]]))
    cross, z = next_token_loss(logits, jnp.asarray([[0, 1, -100]]))
    assert float(cross) == pytest.approx(np.log(4))
    assert float(z) == pytest.approx(0, abs=1e-12)
    assert [float(x) for x in next_token_loss(logits, jnp.full((1, 3), -100))] == [0, 0]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("llama3_8b", 8_030.261248),
        ("mixtral_8x7b", 46_702.792704),
        ("olmoe_1b_7b", 6_919.161856),
        ("qwen3_30b_a3b", 30_532.122624),
        ("deepseek_v2_lite", 15_706.484224),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(name, millions):
    """Counted at 2 and 3 layers: the rest are like the third."""
    config = SIZES[name]()

    def count(num_layers):
        model = CausalLM(replace(config, num_layers=num_layers))
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        return sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))

    two, three = count(2), count(3)
    assert two + (config.num_layers - 2) * (three - two) == round(millions * 1e6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dense_layers": (2,)}, r"dense_layers has \[2\]; layers are 0 to 1"),
        ({"moe": replace(MOE, d_model=16)}, "moe.d_model is 16; the model's is 32"),
        ({"moe": replace(MOE, gating_residual=True)}, "moe.gating_residual is set"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"block": "both"}, "block is 'both'"),
    ],
)
def test_bad_configs(fields, message):
    sizes = {"vocab_size": 50, "d_model": 32, "num_layers": 2, "d_ff": 48}
    attention = AttentionConfig(**HEADS)
    with pytest.raises(ValueError, match=message):
        LMConfig(**{**sizes, "attention": attention, **fields})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids_BS": IDS[0]}, r"must be integers \[B, S\]"),
        ({"ids_BS": IDS.astype(np.float32)}, r"must be integers \[B, S\]"),
        ({"ids_BS": IDS, "mask_BS": np.ones((2, 3), bool)}, r"mask has shape \(2, 3\)"),
        ({"ids_BS": IDS, "cache_size": 4}, "9 tokens do not fit a cache of 4 slots"),
    ],
)
def test_bad_inputs(arguments, message):
    model, variables = build("window")
    with pytest.raises(ValueError, match=message):
        model.apply(variables, **arguments)
