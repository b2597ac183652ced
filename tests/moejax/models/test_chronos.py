"""Chronos models: counts by formula, both dispatches, capacity, caches, relative positions."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.interop.chronos import initial
from moejax.layers.t5 import relative_buckets
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.chronos_losses import mixture_loss, token_loss
from moejax.models.chronos_moe import limited
from moejax.models.chronos_sizes import (
    SIZES,
    TINY,
    fork_parameters,
    mixture_parameters,
    t5_parameters,
)
from moejax.models.t5 import T5Config
from moejax.moe.config import RoutingConfig
from moejax.moe.routing import route

SMALL = T5Config(
    vocab_size=24, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=2, num_heads=2
)
MIXTURES = [
    {},
    {"moe_architecture": "expert_only"},
    {"shared_layers": 1, "expert_norm": False},
    {"moe_architecture": "expert_only", "shared_layers": 1},
    {"head_mode": "encoder"},
    {"head_mode": "encoder", "moe_architecture": "expert_only"},
]


# compiling takes all the time here
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def mixture(t5: T5Config = SMALL, **options) -> ChronosModelConfig:
    fields = {"num_experts": 3, "router_hidden_dim": 5, "n_tokens": t5.vocab_size} | options
    return ChronosModelConfig(t5=t5, chronos=ChronosConfig(use_moe=True, **fields))


def count(config) -> int:
    shapes = jax.eval_shape(lambda: initial(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny", 8_394_496),
        ("mini", 20_456_192),
        ("small", 46_154_240),
        ("base", 201_374_976),
        ("large", 708_963_328),
    ],
)
def test_published_sizes(name, expected):
    assert count(SIZES[name]) == t5_parameters(SIZES[name]) == expected


def test_other_kinds_are_counted_too():
    config = replace(SMALL, feed_forward="gated_gelu", tie_word_embeddings=False)
    assert count(config) == t5_parameters(config)


@pytest.mark.parametrize("options", MIXTURES)
def test_parameters_of_mixtures(options):
    config = mixture(**options)
    assert count(config) == mixture_parameters(config.t5, config.chronos)


@pytest.mark.parametrize(
    ("vocab", "experts", "hidden", "heads", "encoders"),
    [
        (1024, 4, 128, 10_794_372, 21_326_212),
        (1024, 4, 256, 10_827_780, 21_359_620),
        (1024, 8, 256, 13_981_704, 35_045_384),
        (4096, 8, 256, 21_059_592, 42_123_272),
    ],
)
def test_counts_of_the_fork(vocab, experts, hidden, heads, encoders):
    t5 = replace(TINY, vocab_size=vocab)
    moe = ChronosConfig(use_moe=True, num_experts=experts, router_hidden_dim=hidden)
    if (vocab, experts, hidden) == (1024, 4, 256):
        assert mixture_parameters(t5, replace(moe, moe_architecture="expert_only")) == 18_167_940
    assert fork_parameters(t5, moe) == heads
    assert fork_parameters(t5, replace(moe, moe_architecture="expert_only")) == encoders


@pytest.fixture(scope="module")
def batch():
    ids_BS = jax.random.randint(jax.random.key(1), (4, 7), 3, 24)
    mask_BS = jnp.arange(7)[None] >= jnp.array([0, 2, 0, 5])[:, None]
    return ids_BS, mask_BS, jax.random.randint(jax.random.key(2), (4, 3), 3, 24)


@pytest.mark.parametrize("options", [MIXTURES[0], MIXTURES[3]], ids=["heads", "all"])
def test_both_dispatches_and_cached_decoding_agree(options, batch):
    ids_BS, mask_BS, decoder_BU = batch
    config = mixture(SMALL, **options)
    config = replace(config, t5=replace(config.t5, initializer_factor=1.0))
    variables = initial(config, jax.random.key(0))
    found = []
    for dispatch in ("dense", "indexed"):
        chronos = replace(config.chronos, expert_dispatch=dispatch)
        module = replace(config, chronos=chronos).module()
        run = jax.jit(module.apply, static_argnames="method", compiler_options=QUICK)
        found.append(run(variables, *batch).logits)
        memory, _ = run(variables, ids_BS, mask_BS, method="prepare")
        cache = module.start_cache(4, 3, memory.experts[0])
        for step in range(3):
            token_B1 = decoder_BU[:, step : step + 1]
            logits_B1V, cache = run(variables, token_B1, memory, cache, step, method="decode")
            np.testing.assert_allclose(logits_B1V[:, 0], found[-1][:, step], atol=1e-5)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_capacity_drops_in_order_of_choice_and_saves_the_last():
    logits_BE = jnp.log(jnp.array([[6.0, 3, 1], [6, 3, 1], [6, 1, 3], [3, 6, 1]]))
    kept = limited(route(logits_BE, RoutingConfig(num_experts=3, top_k=2)), 1)
    np.testing.assert_array_equal(kept.index, [[0, 1], [0, 1], [0, 2], [1, 0]])
    expected = [[1, 0], [1, 0], [0, 1], [1, 0]]
    np.testing.assert_allclose(kept.kept_weight, expected, atol=1e-6)


@pytest.mark.parametrize("options", [MIXTURES[0], MIXTURES[3], MIXTURES[5]])
def test_training_reaches_every_part(options, batch):
    config = mixture(SMALL, expert_capacity=2, **options)
    variables = initial(config, jax.random.key(0))
    rngs = {"dropout": jax.random.key(3)}

    def loss(params, batch):
        out = config.module().apply({"params": params}, *batch, train=True, rngs=rngs)
        return mixture_loss(out, batch[2], 0.01)

    run = jax.jit(jax.grad(loss), compiler_options=QUICK)
    gradient = run(variables["params"], batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient["router"]["hidden"]).max() > 0
    assert np.abs(gradient["experts"]["lm_head"]).max(axis=(1, 2)).max() > 0


def test_ignored_labels_do_not_count():
    logits_BUV = jax.random.normal(jax.random.key(0), (2, 3, 5))
    labels_BU = jnp.array([[1, 2, -100], [-100, -100, -100]])
    expected = -jax.nn.log_softmax(logits_BUV[0, :2])[jnp.arange(2), jnp.array([1, 2])].mean()
    np.testing.assert_allclose(token_loss(logits_BUV, labels_BU), expected, rtol=1e-6)
    assert token_loss(logits_BUV, jnp.full((2, 3), -100)) == 0


def test_far_positions_share_buckets():
    sizes = {"num_buckets": 32, "max_distance": 128}
    both = relative_buckets(np.array([-8, -16, -127, 1, 0]), bidirectional=True, **sizes)
    np.testing.assert_array_equal(both, [8, 10, 15, 17, 0])
    causal = relative_buckets(np.array([-16, -20, -128, -900, 5]), bidirectional=False, **sizes)
    np.testing.assert_array_equal(causal, [16, 17, 31, 31, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_experts": 1}, "num_active_experts is 2"),
        ({"shared_layers": 3}, "decoder has 2 blocks"),
        ({"moe_architecture": "both"}, "moe_architecture is 'both'"),
        ({"eos_token_id": 2}, "eos_token_id is 2"),
    ],
)
def test_configs_that_do_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        mixture(**wrong)
