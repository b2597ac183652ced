"""Every dispatch against the dense one: values and gradients over random shapes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.moe.blocks import SMALL_BLOCKS, block_sizes
from moejax.moe.capacity import apply_capacity
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.dispatch import DISPATCH, choose, dispatch
from moejax.moe.routing import route
from moejax.moe.stream import can_stream

# grouped leaves all it gets here to another one: see test_grouped.py
NAMES = sorted(DISPATCH.keys() - {"grouped"})
OTHERS = sorted(DISPATCH.keys() - {"dense", "grouped"})
TOLERANCE = 3e-6


def make_params(rng, num_experts, d_model, d_ff, gated=True, bias=False, dtype=np.float32):
    sizes = {"gate": (d_model, d_ff), "up": (d_model, d_ff), "down": (d_ff, d_model)}
    if not gated:
        del sizes["gate"]
    params = {}
    for name, (fan_in, fan_out) in sizes.items():
        params[name] = rng.normal(size=(num_experts, fan_in, fan_out)) * fan_in**-0.5
        if bias:
            params[f"{name}_bias"] = 0.3 * rng.normal(size=(num_experts, fan_out))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def make_routing(rng, num_tokens, num_experts, k, capacity=None, mask=None, skew=0.0, free=()):
    logits = rng.normal(size=(num_tokens, num_experts + len(free)))
    logits[:, 0] += skew
    config = RoutingConfig(num_experts=num_experts, top_k=k, free_experts=free)
    routing = route(jnp.asarray(logits, jnp.float32), config, mask_T=mask)
    return routing if capacity is None else apply_capacity(routing, capacity)


def by_loops(x, routing, params):
    """What a dispatch means, one choice at a time, in float64."""
    x, y = np.asarray(x, np.float64), np.zeros(x.shape)
    params = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    for t, j in np.ndindex(*routing.index.shape):
        e = int(routing.index[t, j])
        if not routing.keep[t, j] or e >= routing.num_experts:
            continue
        part = {
            name: x[t] @ params[name][e] + (params.get(f"{name}_bias", np.zeros((99, 1)))[e])
            for name in ("gate", "up")
            if name in params
        }
        hidden = part["up"] * part["gate"] / (1 + np.exp(-part["gate"]))
        bias = params["down_bias"][e] if "down_bias" in params else 0
        y[t] += float(routing.weight[t, j]) * (hidden @ params["down"][e] + bias)
    return y


def relative(found, expected):
    """Largest difference, in units of the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if not expected.size:
        return 0.0
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-3))


def value_and_gradients(name, x, routing, params, cotangent):
    """Output and gradients for x, the weights of the choices, and the experts."""

    def total(x, weight, params):
        y = dispatch(x, replace(routing, weight=weight), params, name)
        return jnp.sum(y * cotangent), y

    gradients, y = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(
        x, routing.weight, params
    )
    return y, gradients


CASES = [
    {"num_tokens": 13, "num_experts": 5, "k": 2},
    {"num_tokens": 1, "num_experts": 3, "k": 3},
    {"num_tokens": 24, "num_experts": 4, "k": 1, "skew": 9.0},
    {"num_tokens": 600, "num_experts": 3, "k": 2, "skew": 1.0},
    {"num_tokens": 30, "num_experts": 6, "k": 3, "capacity": CapacityConfig(factor=0.6)},
    {"num_tokens": 17, "num_experts": 4, "k": 2, "free": ("zero", "copy")},
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("gated", [True, False])
def test_dense_is_what_the_loops_say(case, gated):
    rng = np.random.default_rng(case)
    routing = make_routing(rng, **CASES[case])
    params = make_params(rng, CASES[case]["num_experts"], 6, 7, gated=True, bias=gated)
    x = jnp.asarray(rng.normal(size=(CASES[case]["num_tokens"], 6)), jnp.float32)
    assert relative(dispatch(x, routing, params, "dense"), by_loops(x, routing, params)) < 2e-6


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("gated", [True, False])
def test_equal_to_dense(name, case, gated):
    rng = np.random.default_rng(case)
    routing = make_routing(rng, **CASES[case])
    num_tokens, width = CASES[case]["num_tokens"], 6
    params = make_params(rng, CASES[case]["num_experts"], width, 7, gated, bias=not gated)
    x, cotangent = (
        jnp.asarray(rng.normal(size=(num_tokens, width)), jnp.float32) for _ in range(2)
    )
    expected = value_and_gradients("dense", x, routing, params, cotangent)
    found = value_and_gradients(name, x, routing, params, cotangent)
    assert max(jax.tree.leaves(jax.tree.map(relative, found, expected))) < TOLERANCE


@pytest.mark.parametrize("num_tokens", [1, 60])
def test_small_blocks_straight_from_the_stack(num_tokens):
    """Sizes that stream.py takes: one row, and rows that need every size of block."""
    rng = np.random.default_rng(11)
    params, routing = make_params(rng, 4, 16, 24, bias=True), make_routing(rng, num_tokens, 4, 2)
    assert block_sizes(routing.index.size, 4) == SMALL_BLOCKS
    assert can_stream(params)
    x = jnp.asarray(rng.normal(size=(num_tokens, 16)), jnp.float32)
    expected = dispatch(x, routing, params, "dense")
    assert relative(dispatch(x, routing, params, "blockpad"), expected) < TOLERANCE


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_shape_is_equal_to_dense(data):
    draw = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    num_experts, num_tokens = draw(1, 2, 5, 8), draw(0, 1, 7, 67, 200)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = jnp.asarray(rng.random(num_tokens) < draw(0.0, 0.5, 1.0))
    capacity = draw(None, CapacityConfig(factor=0.5), CapacityConfig(factor=2.0))
    k = data.draw(st.integers(1, num_experts))
    routing = make_routing(rng, num_tokens, num_experts, k, capacity, mask, skew=draw(0.0, 3.0))
    d_model, d_ff = draw(1, 4, 9), draw(1, 6)
    params = make_params(rng, num_experts, d_model, d_ff, gated=draw(True, False))
    x = jnp.asarray(rng.normal(size=(num_tokens, d_model)), jnp.float32)
    expected = dispatch(x, routing, params, "dense")
    name = draw(*OTHERS)
    assert relative(dispatch(x, routing, params, name), expected) < TOLERANCE, name


@pytest.mark.parametrize("name", NAMES)
def test_order_of_tokens_does_not_matter(name, getkey):
    rng = np.random.default_rng(0)
    logits, order = rng.normal(size=(20, 4)), rng.permutation(20)
    params = make_params(rng, 4, 6, 7)
    x = jnp.asarray(rng.normal(size=(20, 6)), jnp.float32)
    config = RoutingConfig(num_experts=4)
    plain = dispatch(x, route(jnp.asarray(logits), config), params, name)
    moved = dispatch(x[order], route(jnp.asarray(logits[order]), config), params, name)
    np.testing.assert_allclose(moved, plain[order], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_do_not_matter_without_capacity(name):
    rng = np.random.default_rng(1)
    logits, params = jnp.asarray(rng.normal(size=(32, 4))), make_params(rng, 4, 6, 7)
    x = jnp.asarray(rng.normal(size=(32, 6)), jnp.float32)
    config = RoutingConfig(num_experts=4)
    together = dispatch(x, route(logits, config), params, name)
    alone = dispatch(x[:8], route(logits[:8], config), params, name)
    np.testing.assert_allclose(together[:8], alone, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_dropped_token_gives_nothing(name):
    rng = np.random.default_rng(2)
    capacity = CapacityConfig(factor=0.25, order="token_major")
    routing = make_routing(rng, 16, 4, 1, capacity, skew=9.0)
    x = jnp.asarray(rng.normal(size=(16, 6)), jnp.float32)
    y = np.asarray(dispatch(x, routing, make_params(rng, 4, 6, 7, bias=True), name))
    served = np.asarray(routing.keep.any(axis=-1))
    assert 0 < served.sum() < 16
    assert np.abs(y[served]).min() > 0
    assert not y[~served].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_tokens", [0, 1, 6])
def test_all_masked_is_zero(name, num_tokens):
    rng = np.random.default_rng(3)
    routing = make_routing(rng, num_tokens, 4, 2, mask=jnp.zeros(num_tokens, bool))
    params = make_params(rng, 4, 6, 7, bias=True)
    x = jnp.asarray(rng.normal(size=(num_tokens, 6)), jnp.float32)
    y, gradients = value_and_gradients(name, x, routing, params, jnp.ones((num_tokens, 6)))
    assert y.shape == (num_tokens, 6)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves((y, gradients)))


@pytest.mark.parametrize("name", NAMES)
def test_float16_overflow_is_finite(name):
    """Values near the end of float16 are cut off, never inf - inf."""
    rng = np.random.default_rng(4)
    params = make_params(rng, 4, 16, 32, dtype=np.float16)
    x = jnp.asarray(rng.choice([-6e4, 6e4], size=(9, 16)), jnp.float16)
    y = dispatch(x, make_routing(rng, 9, 4, 2), params, name)
    assert y.dtype == jnp.float16
    assert np.isfinite(np.asarray(y, np.float32)).all()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name):
    rng = np.random.default_rng(5)
    params = make_params(rng, 4, 16, 32, dtype=jnp.bfloat16)
    x, routing = jnp.asarray(rng.normal(size=(40, 16)), jnp.bfloat16), make_routing(rng, 40, 4, 2)
    y, gradients = value_and_gradients(name, x, routing, params, jnp.ones((40, 16), jnp.bfloat16))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (x, params))
    expected = dispatch(wide[0], routing, wide[1], "dense")
    assert y.dtype == jnp.bfloat16
    assert relative(y, expected) < 0.02
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients[2])} == {jnp.dtype(jnp.bfloat16)}


def test_sequences_have_slots_of_their_own():
    rng = np.random.default_rng(6)
    wanted = make_routing(rng, 36, 4, 2)
    routing = apply_capacity(wanted, CapacityConfig(factor=0.8, scope="sequence"), num_groups=3)
    params = make_params(rng, 4, 6, 7)
    x = jnp.asarray(rng.normal(size=(36, 6)), jnp.float32)
    expected = dispatch(x, routing, params, "dense")
    for name in OTHERS:
        assert relative(dispatch(x, routing, params, name), expected) < TOLERANCE, name


def test_expert_choice_runs_on_every_dispatch():
    rng = np.random.default_rng(7)
    config = RoutingConfig(num_experts=4, strategy="expert_choice", allow_non_causal=True)
    routing = route(jnp.asarray(rng.normal(size=(12, 4))), config, capacity=5)
    params = make_params(rng, 4, 6, 7)
    x = jnp.asarray(rng.normal(size=(12, 6)), jnp.float32)
    expected = by_loops(x, routing, params)
    for name in NAMES:
        assert relative(dispatch(x, routing, params, name), expected) < TOLERANCE, name


def test_wrong_sizes_are_refused():
    rng = np.random.default_rng(8)
    routing, params = make_routing(rng, 6, 4, 2), make_params(rng, 3, 6, 7)
    with pytest.raises(ValueError, match="hold 3 experts, the routing is for 4"):
        dispatch(jnp.zeros((6, 6)), routing, params)
    with pytest.raises(ValueError, match="the routing is for 6 rows"):
        dispatch(jnp.zeros((5, 6)), routing, make_params(rng, 4, 6, 7))
    with pytest.raises(ValueError, match="implementation is 'best'"):
        dispatch(jnp.zeros((6, 6)), routing, make_params(rng, 4, 6, 7), "best")  # pyright: ignore


def test_auto_names_a_dispatch():
    rng = np.random.default_rng(9)
    small, large = make_routing(rng, 2, 8, 2), make_routing(rng, 64, 8, 2)
    limited = make_routing(rng, 64, 8, 2, CapacityConfig())
    assert {choose(r, "cpu") for r in (small, large, limited)} == {"blockpad"}
    assert [choose(r, "gpu") for r in (small, large, limited)] == ["indexed", "ragged", "gather"]
