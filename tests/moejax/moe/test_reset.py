"""Reset of dead experts: which columns change, and what happens to their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.reset import reset_dead_experts
from moejax.moe.usage import expert_load

D, E = 6, 4


@pytest.fixture
def model(getkey):
    """Parameters of two layers in a tree, an optimiser's state with moments, and loads."""
    routing = RoutingConfig(num_experts=E, free_experts=("zero",))
    layer = MoELayer(MoEConfig(d_model=D, d_ff=8, routing=routing))
    x = jax.random.normal(getkey(), (2, 8, D))
    one = layer.init(getkey(), x)["params"]
    params = {"layers_0": {"moe": one}, "layers_1": {"moe": jax.tree.map(jnp.copy, one)}}
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
    for kernel in kernels:
        old = params["layers_0"]["moe"]["router_kernel"]
        np.testing.assert_array_equal(kernel[:, E], old[:, E])
        assert not np.isin(kernel[:, :E], old).any()


def test_load_of_another_model(model):
    params, state, load = model
    with pytest.raises(ValueError, match="no layers_7/moe/router_kernel"):
        reset_dead_experts(params, state, {"layers_7": load["layers_0"]}, jax.random.key(0))


def test_load_is_measured(getkey):
    routing = RoutingConfig(num_experts=E, top_k=1, free_experts=("zero",))
    layer = MoELayer(MoEConfig(d_model=D, d_ff=8, routing=routing))
    x = jnp.eye(D)[jnp.asarray([[0, 0, 0, 1, 2]])]
    variables = layer.init(getkey(), x)
    # tokens 0 to expert 3, token 1 to expert 0, token 2 to the free one
    kernel = jnp.zeros((D, E + 1)).at[0, 3].set(5).at[1, 0].set(5).at[2, E].set(5)
    variables["params"]["router_kernel"] = kernel
    _, sown = layer.apply(variables, x, mutable=["moe"])
    assert expert_load({"a": sown["moe"]})["a"]["load"].tolist() == [1, 0, 0, 3]
