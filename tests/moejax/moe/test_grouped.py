"""The grouped dispatch: its own gradient, its layout of rows, what it leaves to others."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.kernels.grouped import ROWS, why_not
from moejax.moe import dispatch as dispatches
from moejax.moe.config import CapacityConfig
from moejax.moe.dispatch import choose, dispatch
from moejax.moe.grouped import grouped_experts, make_layout
from moejax.moe.grouped_limit import limited_experts
from tests.moejax.moe.test_dispatch import CASES, make_params, make_routing, relative

MASKED = {"num_tokens": 40, "num_experts": 3, "k": 2, "mask": jnp.arange(40) % 3 > 0}
MANY = {"num_tokens": 300, "num_experts": 40, "k": 1, "skew": 9.0}


def gradients(function, x, routing, params, cotangent):
    """(Gradients for x, the weights of the choices and the experts; output)."""

    def total(x, weight, params):
        y = function(x, replace(routing, weight=weight), params)
        return jnp.sum(y * cotangent), y

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(x, routing.weight, params)


def plain(x, routing, params):
    """The grouped dispatch by the plain twins of its products."""
    return grouped_experts(x, routing.kept_weight, params, make_layout(routing), "xla")


@pytest.mark.parametrize("case", [CASES[4], CASES[5], MASKED, MANY])
def test_equal_to_dense(case):
    rng = np.random.default_rng(0)
    routing = make_routing(rng, **case)
    params = make_params(rng, case["num_experts"], 6, 7)
    x, cotangent = (
        jnp.asarray(rng.normal(size=(case["num_tokens"], 6)), jnp.float32) for _ in range(2)
    )
    found = gradients(plain, x, routing, params, cotangent)
    expected = gradients(lambda *args: dispatch(*args, "dense"), x, routing, params, cotangent)
    assert max(jax.tree.leaves(jax.tree.map(relative, found, expected))) < 3e-6


@pytest.mark.parametrize("limit", [60, 400])
def test_room_for_less_than_all_choices_changes_nothing(limit):
    rng = np.random.default_rng(6)
    routing = make_routing(rng, 300, 4, 2, skew=2.0)
    params = make_params(rng, 4, 6, 7)
    x, cotangent = (jnp.asarray(rng.normal(size=(300, 6)), jnp.float32) for _ in range(2))

    def limited(x, routing, params):
        # experts 2 and 3 are elsewhere
        routing = replace(routing, keep=routing.keep & (routing.index < 2))
        return limited_experts(x, routing.kept_weight, params, routing, limit, "xla")

    def all_(x, routing, params):
        routing = replace(routing, keep=routing.keep & (routing.index < 2))
        return plain(x, routing, params)

    # one tile an expert more than the limit's: 4 tiles are too few for what is served here, 7 not
    assert 5 <= int(make_layout(routing).tiles.used[0]) <= 7
    found, expected = (gradients(f, x, routing, params, cotangent) for f in (limited, all_))
    assert max(jax.tree.leaves(jax.tree.map(relative, found, expected))) < 1e-6


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "k", "skew"), [(1, 1, 1, 0.0), (257, 5, 3, 0.0), (128, 2, 1, 1e4)]
)
def test_slots_fill_tiles_of_one_expert(num_tokens, num_experts, k, skew):
    rng = np.random.default_rng(1)
    routing = make_routing(rng, num_tokens, num_experts, k, skew=skew)
    layout = jax.jit(make_layout)(routing)
    choice_N = np.asarray(layout.slots.choice)
    filled = choice_N < num_tokens * k
    assert sorted(choice_N[filled]) == list(range(num_tokens * k))
    expert_A = np.asarray(routing.index).reshape(-1)
    owner_N = np.repeat(np.asarray(layout.tiles.expert), ROWS)
    assert (owner_N[filled] == expert_A[choice_N[filled]]).all()
    slot_A = np.asarray(layout.slots.slot).reshape(-1)
    assert (choice_N[slot_A] == np.arange(num_tokens * k)).all()
    assert int(layout.tiles.used[0]) <= len(layout.tiles.expert)


def test_bfloat16_is_close_to_float32():
    rng = np.random.default_rng(2)
    routing = make_routing(rng, 40, 4, 2)
    params = make_params(rng, 4, 16, 32, dtype=jnp.bfloat16)
    x, cotangent = (jnp.asarray(rng.normal(size=(40, 16)), jnp.bfloat16) for _ in range(2))
    grads, y = gradients(plain, x, routing, params, cotangent)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (x, params, cotangent))
    expected = gradients(plain, wide[0], routing, *wide[1:])
    assert max(jax.tree.leaves(jax.tree.map(relative, (grads, y), expected))) < 0.03
    assert grads[0].dtype == grads[2]["up"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "is for NVIDIA GPUs of compute capability 8.0 or later, not"),
        ({"bias": True}, "is for SwiGLU experts without bias"),
        ({"gated": False}, "is for SwiGLU experts without bias"),
        ({"dtype": np.float32}, "is for bfloat16 tokens and parameters"),
    ],
)
def test_one_warning_names_the_dispatch_that_serves(monkeypatch, change, reason):
    if jax.default_backend() == "gpu" and not change:
        pytest.skip("the kernels can serve here")
    rng = np.random.default_rng(3)
    params = make_params(rng, 4, 8, 8, **({"dtype": jnp.bfloat16} | change))  # pyright: ignore
    routing = make_routing(rng, 10, 4, 2)
    x = jnp.asarray(rng.normal(size=(10, 8)), params["up"].dtype)
    name = choose(routing, jax.default_backend())
    monkeypatch.setitem(dispatches.DISPATCH, name, lambda x, routing, params: x + 1)
    dispatches._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match=f"'grouped' {reason}.*runs instead") as seen:
        found = [dispatch(x, routing, params, "grouped") for _ in range(2)]
    assert len(seen) == 1
    assert repr(name) in str(seen[0].message)
    np.testing.assert_array_equal(found, [x + 1, x + 1])


def test_auto_takes_it_where_the_kernels_can_serve():
    rng = np.random.default_rng(4)
    few, many = make_routing(rng, 2, 8, 2), make_routing(rng, 64, 8, 2)
    limited = make_routing(rng, 64, 8, 2, CapacityConfig())
    names = [choose(routing, "gpu", kernels=True) for routing in (few, many, limited)]
    assert names == ["indexed", "grouped", "grouped"]
    params = make_params(rng, 8, 64, 128, dtype=jnp.bfloat16)  # pyright: ignore
    x = jnp.zeros((64, 64), jnp.bfloat16)
    assert "NVIDIA" in str(why_not(x, params)) or jax.default_backend() == "gpu"


@pytest.mark.parametrize("sizes", [(72, 40)])
def test_widths_are_padded_for_the_kernels(monkeypatch, sizes):
    rng = np.random.default_rng(5)
    params = make_params(rng, 3, *sizes)
    routing = make_routing(rng, 20, 3, 2)
    x = jnp.asarray(rng.normal(size=(20, sizes[0])), jnp.float32)
    seen = []
    monkeypatch.setattr(dispatches, "kernels_here", lambda: "triton")

    def experts(x, weight, params, layout, implementation):
        seen.append((x.shape, params["down"].shape, implementation))
        return grouped_experts(x, weight, params, layout, "xla")

    monkeypatch.setattr(dispatches, "why_not", lambda x, params: None)
    monkeypatch.setattr(dispatches, "grouped_experts", experts)
    found = dispatch(x, routing, params, "grouped")
    wide = tuple(-(-size // 64) * 64 for size in sizes)
    assert seen == [((20, wide[0]), (3, wide[1], wide[0]), "triton")]
    assert relative(found, dispatch(x, routing, params, "dense")) < 3e-6
