"""Reset of dead experts: which columns change, and what happens to their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moejax.moe.reset import reset_dead_experts
from moejax.moe.usage import Usage, expert_load

D, E = 6, 4


@pytest.fixture
def model():
    """Parameters of two layers in a tree, an optimiser's state with moments, and loads."""
    rng = np.random.default_rng(0)

    def layer():
        kernel, up = rng.normal(size=(D, E + 1)), rng.normal(size=(E, D, 8))
        return {"router_kernel": jnp.float32(kernel), "experts": {"up": jnp.float32(up)}}

    params = {"layers_0": {"moe": layer()}, "layers_1": {"moe": layer()}}
    optimiser = optax.chain(optax.clip(1.0), optax.adam(1e-2))
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = optimiser.update(grads, optimiser.init(params), params)
    load = {
        "layers_0": {"moe": {"load": jnp.asarray([1.9, 0.02, 1.0, 1.08])}},
        "layers_1": {"moe": {"load": jnp.asarray([0.5, 0.5, 1.5, 1.5])}},
    }
    return params, state, load


def test_dead_columns(model):
    params, state, load = model
    new, cleared, dead = reset_dead_experts(params, state, load, jax.random.key(3), threshold=0.1)
    assert dead["layers_0"]["moe"]["load"].tolist() == [False, True, False, False]
    assert not dead["layers_1"]["moe"]["load"].any()
    changed = jax.tree.map(lambda a, b: np.asarray(a != b), params, new)
    expected = np.zeros((D, E + 1), bool)
    expected[:, 1] = True
    np.testing.assert_array_equal(changed["layers_0"]["moe"].pop("router_kernel"), expected)
    assert not any(leaf.any() for leaf in jax.tree.leaves(changed))
    # the moments of that column are 0, all others as they were
    for name in ("mu", "nu"):
        moments = getattr(cleared[1][0], name)
        np.testing.assert_array_equal(moments["layers_0"]["moe"]["router_kernel"] == 0, expected)
        assert (moments["layers_1"]["moe"]["router_kernel"] != 0).all()
        assert (moments["layers_0"]["moe"]["experts"]["up"] != 0).all()
    assert cleared[1][0].count == state[1][0].count


def test_columns_differ_between_layers_and_keys(model):
    params, state, load = model
    kernels = [
        layer["moe"]["router_kernel"]
        for seed in (0, 1)
        for layer in reset_dead_experts(
            params, state, load, jax.random.key(seed), threshold=jnp.inf
        ).params.values()
    ]
    assert len({np.asarray(kernel[:, :E]).tobytes() for kernel in kernels}) == 4
    # the free expert keeps its column
    for kernel, layer in zip(kernels, [*params.values()] * 2, strict=True):
        old = layer["moe"]["router_kernel"]
        np.testing.assert_array_equal(kernel[:, E], old[:, E])
        assert not np.isin(kernel[:, :E], old).any()


def test_load_of_another_model(model):
    params, state, load = model
    with pytest.raises(ValueError, match="no layers_7/moe/router_kernel"):
        reset_dead_experts(params, state, {"layers_7": load["layers_0"]}, jax.random.key(0))


def test_load_is_measured():
    wanted, zero = jnp.asarray([1, 0, 0, 3, 1]), jnp.zeros(())
    usage = Usage(wanted, wanted, zero, jnp.zeros(E), zero, zero, zero, zero)
    sown = {"a": {"usage": (usage,)}, "b": {"moe": {"usage": (usage, usage)}}}
    load = expert_load(sown)
    assert load["a"]["load"].tolist() == load["b"]["moe"]["load"].tolist() == [1, 0, 0, 3]
