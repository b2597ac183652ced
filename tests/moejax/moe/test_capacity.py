"""Queues: against plain loops over random shapes, and the rule for the number of places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.moe.capacity import apply_capacity, capacity_of, overflow_to
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.routing import route


def positions(index, valid, order, importance, num_experts, num_groups):
    """Places by plain loops."""
    num_tokens, k = index.shape
    place = np.full((num_tokens, k), -1)
    taken = np.zeros((num_groups, num_experts), int)
    tokens = list(range(num_tokens))
    if order == "priority":
        tokens.sort(key=lambda t: -importance[t])
    queue = [(t, j) for j in range(k) for t in tokens]
    if order == "token_major":
        queue = [(t, j) for t in tokens for j in range(k)]
    for t, j in queue:
        if valid[t] and index[t, j] < num_experts:
            group = t * num_groups // num_tokens
            place[t, j] = taken[group, index[t, j]]
            taken[group, index[t, j]] += 1
    return place


@settings(deadline=None, max_examples=25)
@given(
    data=st.data(),
    num_groups=st.integers(1, 3),
    group_size=st.sampled_from([0, 1, 2, 5, 11]),
    num_experts=st.integers(1, 5),
    free=st.integers(0, 2),
    order=st.sampled_from(["token_major", "choice_major", "priority"]),
    scope=st.sampled_from(["batch", "sequence"]),
)
def test_queues(data, num_groups, group_size, num_experts, free, order, scope):
    k = data.draw(st.integers(1, num_experts + free))
    config = RoutingConfig(num_experts=num_experts, top_k=k, free_experts=("zero",) * free)
    limits = CapacityConfig(factor=data.draw(st.sampled_from([0.3, 1.0])), order=order, scope=scope)
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    num_tokens = num_groups * group_size
    mask = rng.random(num_tokens) < data.draw(st.sampled_from([0.0, 0.7, 1.0]))
    importance = rng.permutation(num_tokens).astype(np.float32)
    wanted = route(
        jnp.asarray(rng.normal(size=(num_tokens, num_experts + free)), jnp.float32),
        config,
        mask_T=jnp.asarray(mask),
    )
    routing = apply_capacity(
        wanted, limits, num_groups=num_groups, importance_T=jnp.asarray(importance)
    )
    groups = num_groups if scope == "sequence" else 1
    index = np.asarray(wanted.index)
    expected = positions(index, mask, order, importance, num_experts, groups)
    np.testing.assert_array_equal(routing.position, expected)
    assert routing.capacity == capacity_of(limits, num_tokens // groups, num_experts, k)
    has_room = (expected < routing.capacity) & mask[:, None]
    np.testing.assert_array_equal(routing.keep, has_room)


@pytest.mark.parametrize(
    ("fields", "tokens", "expected"),
    [
        ({"factor": 1.0}, 64, 16),
        ({"factor": 1.25}, 63, 20),
        ({"factor": 1.0, "counts_k": False}, 64, 8),
        ({"factor": 1.25, "minimum": 40}, 64, 40),
        ({"factor": 1.25, "minimum": 400}, 64, 64),
        ({"factor": 1.25, "maximum": 7}, 64, 7),
        ({"factor": 1e-6}, 64, 1),
        ({"factor": 1.0}, 0, 1),
        ({"factor": 1.1}, 40, 11),
    ],
)
def test_places(fields, tokens, expected):
    assert capacity_of(CapacityConfig(**fields), tokens, 8, 2) == expected


def test_a_ramp_shortens_the_queues(getkey):
    routing = route(jax.random.normal(getkey(), (32, 4)), RoutingConfig(num_experts=4))
    limits = CapacityConfig(factor=0.75, minimum=2)
    grown = jax.jit(lambda ramp: apply_capacity(routing, limits, ramp=ramp))
    for ramp, places in ((0.0, 2), (0.29, 4), (0.5, 7), (1.0, 12)):
        shorter = grown(jnp.float32(ramp))
        assert shorter.capacity == 12
        found = int(shorter.counts(shorter.keep).max())
        assert found == min(places, int(routing.counts(routing.keep).max()))
    full = apply_capacity(routing, limits)
    np.testing.assert_array_equal(full.keep, shorter.keep)
    assert grown._cache_size() == 1


def test_overflow_goes_to_a_free_expert(getkey):
    config = RoutingConfig(num_experts=4, top_k=2, free_experts=("zero", "copy"))
    mask = jnp.arange(32) < 30
    wanted = route(jax.random.normal(getkey(), (32, 6)), config, mask_T=mask)
    kept = apply_capacity(wanted, CapacityConfig(factor=0.5))
    served = overflow_to(5, wanted, kept)
    dropped = np.asarray(wanted.keep & ~kept.keep)
    assert dropped.any()
    expected = np.where(dropped, 5, wanted.index)
    np.testing.assert_array_equal(served.index, expected)
    np.testing.assert_array_equal(served.kept_weight, wanted.kept_weight)
    np.testing.assert_array_equal(served.served, kept.served)


@pytest.mark.parametrize("normalise", [True, False])
def test_what_is_kept_is_shared_again(normalise, getkey):
    config = RoutingConfig(num_experts=4, normalise=normalise)
    routing = route(jax.random.normal(getkey(), (32, 4)), config)
    kept = apply_capacity(routing, CapacityConfig(factor=0.5, renormalise=True), total=2.5)
    sums, served = np.asarray(kept.kept_weight.sum(-1)), np.asarray(kept.keep.any(-1))
    assert 0 < served.sum() < 32
    np.testing.assert_allclose(sums, np.where(served, 2.5, 0), rtol=1e-6)
    plain = apply_capacity(routing, CapacityConfig(factor=0.5))
    np.testing.assert_array_equal(plain.weight, routing.weight)


def test_sequences_do_not_compete(getkey):
    routing = route(jax.random.normal(getkey(), (24, 4)), RoutingConfig(num_experts=4))
    limits = CapacityConfig(factor=0.7, scope="sequence")
    both = apply_capacity(routing, limits, num_groups=2)
    second = route(routing.logits[12:], RoutingConfig(num_experts=4))
    np.testing.assert_array_equal(both.keep[12:], apply_capacity(second, limits).keep)
    with pytest.raises(ValueError, match="24 tokens cannot form 5 sequences"):
        apply_capacity(routing, limits, num_groups=5)
