"""What MoE++ adds: logits of the layer before, and free experts' share of capacity and balance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe.capacity import apply_capacity
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.losses import routed_load_balance
from moejax.moe.routing import route
from moejax.moe.usage import aux_loss

D, S = 6, 9
ROUTING = RoutingConfig(num_experts=4, free_experts=("zero", "copy"))


def make_config(**fields):
    sizes = {"d_model": D, "d_ff": 8, "routing": ROUTING, "dispatch": "dense"}
    return MoEConfig(**{**sizes, **fields})


@pytest.fixture
def x(getkey):
    return jax.random.normal(getkey(), (2, S, D))


def test_logits_of_the_layer_before_have_a_say(x):
    layer = MoELayer(make_config(gating_residual=True))
    variables = [layer.init(jax.random.key(seed), x) for seed in range(2)]

    def two_layers(variables):
        y, logits = layer.apply(variables[0], x)
        return layer.apply(variables[1], y, residual_logits=logits)

    y, first = layer.apply(variables[0], x)
    _, second = jax.jit(two_layers)(variables)
    params = variables[1]["params"]
    expected = y @ params["router_kernel"] + first @ params["residual_kernel"]
    np.testing.assert_allclose(second, expected, atol=1e-5)
    # the loss sees the output alone, so every gradient went through the second router
    gradients = jax.jit(jax.grad(lambda v: jnp.sum(jnp.sin(two_layers(v)[0]))))(variables)
    assert np.abs(gradients[1]["params"]["residual_kernel"]).max() > 1e-4
    assert np.abs(gradients[0]["params"]["router_kernel"]).max() > 1e-4


def test_first_layer_and_layer_without_are_plain(x):
    layer, plain = MoELayer(make_config(gating_residual=True)), MoELayer(make_config())
    variables = layer.init(jax.random.key(0), x)
    params = dict(variables["params"])
    del params["residual_kernel"]
    assert jax.tree.structure(plain.init(jax.random.key(0), x)["params"]) == jax.tree.structure(
        params
    )
    y, logits = layer.apply(variables, x)
    np.testing.assert_array_equal(y, plain.apply({"params": params}, x))
    assert (logits.shape, logits.dtype) == ((2, S, 6), jnp.float32)


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_tau_moves_capacity_to_the_free_experts(tau):
    logits = np.random.default_rng(0).normal(size=(24, 6))
    wanted = route(jnp.asarray(logits, jnp.float32), ROUTING)
    kept = apply_capacity(wanted, CapacityConfig(factor=1.1), tau=tau)
    assert kept.capacity == np.ceil(1.1 * tau * 24 * 2 / (tau * 4 + 2))
    assert np.asarray(kept.keep)[np.asarray(kept.index) >= 4].all()
    assert np.bincount(np.asarray(kept.index)[np.asarray(kept.keep)])[:4].max() <= kept.capacity


def test_tau_weighs_the_free_experts_balance():
    logits = np.random.default_rng(1).normal(size=(24, 6))
    routing = route(jnp.asarray(logits, jnp.float32), ROUTING)
    share = np.bincount(np.asarray(routing.index).reshape(-1), minlength=6) / 48
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = 6 * np.sum(np.array([1, 1, 1, 1, 0.3, 0.3]) * share * probs.mean(axis=0))
    np.testing.assert_allclose(routed_load_balance(routing, free_weight=0.3), expected, rtol=1e-5)


@pytest.mark.parametrize("tau", [0.5, None])
def test_tau_of_the_layer_reaches_capacity_and_loss(x, tau):
    layer = MoELayer(make_config(tau=tau))
    variables = layer.init(jax.random.key(0), x)
    _, sown = layer.apply(variables, x, train=True, mutable=["moe", "intermediates"])
    (routing,) = sown["intermediates"]["routing"]
    sharers = 4 if tau is None else 4 + 2 / tau
    assert routing.capacity == np.ceil(1.25 * 2 * S * 2 / sharers)
    expected = 0.01 * routed_load_balance(routing, free_weight=tau or 1.0)
    np.testing.assert_allclose(aux_loss(sown["moe"]), expected, rtol=1e-5)


def test_bad_settings_are_refused(x):
    with pytest.raises(ValueError, match="tau is 0"):
        make_config(tau=0)
    with pytest.raises(ValueError, match="without a free expert"):
        make_config(tau=0.5, routing=RoutingConfig(num_experts=4))
    soft = RoutingConfig(num_experts=4, strategy="soft", allow_non_causal=True)
    with pytest.raises(ValueError, match="takes no gating_residual"):
        make_config(gating_residual=True, routing=soft)
    plain, layer = MoELayer(make_config()), MoELayer(make_config(gating_residual=True))
    with pytest.raises(ValueError, match="set gating_residual=True"):
        plain.init(jax.random.key(0), x, residual_logits=jnp.zeros((2, S, 6)))
    with pytest.raises(ValueError, match=r"x needs \(2, 9, 6\)"):
        layer.init(jax.random.key(0), x, residual_logits=jnp.zeros((2, S, 4)))
