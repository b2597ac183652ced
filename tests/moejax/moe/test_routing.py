"""Routers: what holds for every strategy, and what each one promises."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from moejax.moe.config import RoutingConfig
from moejax.moe.routing import STRATEGIES, route, router_logits, soft_route

CASES = {
    "mixtral": RoutingConfig(num_experts=6, top_k=2),
    "qwen": RoutingConfig(num_experts=7, top_k=3, normalise=False),
    "switch": RoutingConfig(num_experts=5, top_k=1, normalise=False),
    "one expert": RoutingConfig(num_experts=1, top_k=1),
    "all experts": RoutingConfig(num_experts=3, top_k=3),
    "sigmoid": RoutingConfig(num_experts=6, score="sigmoid"),
    "identity": RoutingConfig(num_experts=6, score="identity"),
    "gshard": RoutingConfig(num_experts=6, strategy="top_2"),
    "deepseek_v2": RoutingConfig(
        num_experts=12, top_k=3, strategy="group_limited_greedy", num_groups=3, top_groups=2
    ),
    "deepseek_v3": RoutingConfig(
        num_experts=12, top_k=4, strategy="noaux_tc", score="sigmoid", num_groups=4, top_groups=2
    ),
    "longcat": RoutingConfig(
        num_experts=4, top_k=3, free_experts=("copy", "zero"), use_bias=True, normalise=False
    ),
    "expert_choice": RoutingConfig(
        num_experts=4, top_k=1, strategy="expert_choice", allow_non_causal=True
    ),
}
SUM_TO_ONE = ("mixtral", "all experts", "sigmoid", "identity", "gshard", "deepseek_v3")


def run(name, logits, **options):
    config = CASES[name]
    if config.strategy == "expert_choice":
        options["capacity"] = max(1, logits.shape[0] // 4)
    if config.has_bias:
        options.setdefault("bias_M", jnp.linspace(-0.2, 0.2, config.num_outputs))
    return route(logits, config, **options)


def test_every_strategy_has_a_case():
    assert {config.strategy for config in CASES.values()} | {"soft"} == STRATEGIES.keys()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_tokens", [0, 1, 13])
def test_invariants(name, num_tokens, getkey):
    if num_tokens == 0 and name == "expert_choice":
        pytest.skip("no token can be taken from none")
    logits = 3 * jax.random.normal(getkey(), (num_tokens, CASES[name].num_outputs))
    routing = run(name, logits)
    index, weight = np.asarray(routing.index), np.asarray(routing.weight)
    assert index.dtype == np.int32
    assert weight.dtype == np.float32
    assert all(len(set(row)) == len(row) for row in index)
    assert ((index >= 0) & (index < CASES[name].num_outputs)).all()
    assert np.isfinite(weight).all()
    if name in SUM_TO_ONE:
        np.testing.assert_allclose(weight.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(routing.counts(routing.keep).sum(), routing.keep.sum())


@pytest.mark.parametrize("name", CASES)
def test_jit_and_gradient(name, getkey):
    logits = jax.random.normal(getkey(), (5, CASES[name].num_outputs))

    def total(logits):
        routing = run(name, logits)
        return jnp.sum(jnp.sin(routing.kept_weight + jnp.arange(routing.weight.shape[-1])[None]))

    np.testing.assert_allclose(jax.jit(total)(logits), total(logits), rtol=1e-6)
    check_grads(total, (logits,), order=1, modes=["rev"], eps=1e-3, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("name", CASES)
def test_padding_and_nan_take_no_part(name, getkey):
    logits = jax.random.normal(getkey(), (8, CASES[name].num_outputs))
    mask = jnp.asarray([1, 1, 0, 1, 1, 1, 1, 0])
    routing = run(name, logits.at[3, 0].set(jnp.nan), mask_T=mask)
    assert routing.valid.tolist() == [True, True, False, False, True, True, True, False]
    assert not routing.keep[jnp.asarray([2, 3, 7])].any()
    for leaf in jax.tree.leaves(routing):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [1e4, 1e37, np.inf])
def test_huge_logits_stay_finite(name, size, getkey):
    logits = jnp.sign(jax.random.normal(getkey(), (8, CASES[name].num_outputs))) * size

    def total(logits):
        routing = run(name, logits)
        return jnp.sum(routing.kept_weight) + jnp.sum(routing.probabilities)

    value, gradient = jax.value_and_grad(total)(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_router_computes_in_float32():
    x = jnp.full((2, 64), 60000.0, jnp.float16)
    logits = router_logits(x, jnp.ones((64, 3), jnp.float16))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, 64 * 60000.0)


def test_jitter_needs_a_key(getkey):
    config = RoutingConfig(num_experts=4, logit_jitter=0.5)
    x, kernel = jax.random.normal(getkey(), (6, 8)), jax.random.normal(getkey(), (8, 4))
    plain = router_logits(x, kernel, jitter=0.1)
    np.testing.assert_array_equal(plain, router_logits(x, kernel))
    noisy = router_logits(x, kernel, jitter=0.1, key=getkey())
    assert 0 < np.abs(noisy - plain).max() <= 0.1 * np.abs(np.abs(x) @ np.abs(kernel)).max()
    np.testing.assert_array_equal(route(plain, config).logits, plain)
    assert np.abs(route(plain, config, key=getkey()).logits - plain).max() > 0


def test_bias_has_a_say_in_the_choice_only(getkey):
    config = CASES["deepseek_v3"]
    logits = jax.random.normal(getkey(), (16, 12))
    bias = jnp.zeros(12).at[5].set(10.0)
    routing = route(logits, config, bias_M=bias)
    assert (routing.index == 5).any(axis=-1).all()
    scores = np.take_along_axis(np.asarray(jax.nn.sigmoid(logits)), np.asarray(routing.index), -1)
    np.testing.assert_allclose(routing.weight, scores / scores.sum(-1, keepdims=True), rtol=1e-5)
    gradient = jax.grad(lambda b: route(logits, config, bias_M=b).weight[0, 0])(bias)
    assert not gradient.any()


def test_bias_without_leave_is_refused():
    with pytest.raises(ValueError, match="set use_bias=True"):
        route(jnp.zeros((2, 4)), RoutingConfig(num_experts=4), bias_M=jnp.zeros(4))


def test_groups_are_exclusive_with_negative_scores(getkey):
    """Scores below 0 must not lose against the experts that are left out."""
    logits = jax.random.normal(getkey(), (32, 12))
    routing = route(logits, CASES["deepseek_v3"], bias_M=jnp.full(12, -5.0))
    assert max(len({i // 3 for i in row}) for row in routing.index.tolist()) <= 2


@pytest.mark.parametrize("policy", ["all", "sampling", "random"])
def test_second_expert_policies(policy, getkey):
    config = RoutingConfig(num_experts=4, strategy="top_2", second_expert=policy)
    logits = jnp.tile(jnp.asarray([[2.0, 1.0, 0.0, -1.0]]), (4000, 1))
    plain, drawn = route(logits, config), route(logits, config, key=getkey())
    assert plain.keep.all()
    assert (plain.index == jnp.asarray([[0, 1]])).all()
    assert (drawn.index[:, 0] == 0).all()
    if policy == "random":
        expected = min(1, 2 * float(jax.nn.softmax(logits[0])[1]))
        np.testing.assert_allclose(drawn.keep[:, 1].mean(), expected, atol=0.03)
    if policy == "sampling":
        share = jax.nn.softmax(logits[0, 1:])
        np.testing.assert_allclose(drawn.counts(drawn.keep)[1:] / 4000, share, atol=0.03)


def test_expert_choice_takes_the_best_tokens_of_each_group(getkey):
    config = CASES["expert_choice"]
    logits = jax.random.normal(getkey(), (12, 4))
    both = route(logits, config, capacity=2, num_groups=2)
    assert both.counts(both.keep).tolist() == [4, 4, 4, 4]
    alone = route(logits[:6], config, capacity=2)
    np.testing.assert_array_equal(both.keep[:6], alone.keep)
    with pytest.raises(ValueError, match="capacity is 7"):
        route(logits, config, capacity=7, num_groups=2)


def test_soft_routing(getkey):
    config = RoutingConfig(
        num_experts=3, strategy="soft", slots_per_expert=2, allow_non_causal=True
    )
    logits, mask = jax.random.normal(getkey(), (8, 6)), jnp.asarray([1, 1, 1, 0, 0, 0, 0, 0])
    soft = soft_route(logits, config, mask_T=mask, num_groups=2)
    np.testing.assert_allclose(soft.dispatch[0].sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(soft.combine[0, :3].sum(axis=-1), 1, rtol=1e-6)
    assert not soft.dispatch[1].any()
    assert not soft.combine[0, 3].any()
    assert soft_route(logits[:0], config).combine.shape == (1, 0, 6)
    with pytest.raises(ValueError, match="use soft_route"):
        route(logits, config)


def test_shapes_are_checked():
    config = RoutingConfig(num_experts=4)
    with pytest.raises(ValueError, match=r"this router needs \[T, 4\]"):
        route(jnp.zeros((2, 5)), config)
    with pytest.raises(ValueError, match="2 equal groups"):
        route(jnp.zeros((3, 4)), config, num_groups=2)


def test_free_experts_belong_to_no_group(getkey):
    config = RoutingConfig(
        num_experts=8,
        top_k=3,
        strategy="noaux_tc",
        score="sigmoid",
        num_groups=4,
        top_groups=1,
        free_experts=("zero",),
    )
    logits = jax.random.normal(getkey(), (64, 9))
    index = np.sort(np.asarray(route(logits, config).index), axis=-1)
    best = np.asarray(jax.nn.sigmoid(logits))[:, :8].reshape(64, 4, 2).sum(-1).argmax(-1)
    np.testing.assert_array_equal(index, np.stack([2 * best, 2 * best + 1, 8 + 0 * best], -1))
    two = np.asarray(route(logits, replace(config, top_k=2)).index)
    assert 0 < (two == 8).any(-1).sum() < 64
    assert (two[two < 8] // 2 == np.repeat(best, 2).reshape(64, 2)[two < 8]).all()
