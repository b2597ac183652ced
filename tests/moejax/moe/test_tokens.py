"""What a layer may learn about single tokens: their importance, and what the router reads."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.semantic import running_mean

D, S = 6, 12
ROUTING = RoutingConfig(num_experts=4)
CONFIG = MoEConfig(
    d_model=D,
    d_ff=8,
    routing=ROUTING,
    capacity=CapacityConfig(factor=0.5, order="priority"),
    dispatch="dense",
)


@pytest.fixture
def x(getkey):
    return jax.random.normal(getkey(), (2, S, D))


def gradient(layer, params, x, path):
    """Of a loss on the output, with respect to one parameter."""
    grads = jax.grad(lambda p: jnp.sum(layer.apply({"params": p}, x, train=True) ** 3))(params)
    for name in path:
        grads = grads[name]
    return np.asarray(grads)


def test_importance(x):
    plain, layer = MoELayer(CONFIG), MoELayer(replace(CONFIG, token_importance=True))
    params = layer.init(jax.random.key(1), x)["params"]
    rest = {name: leaf for name, leaf in params.items() if name != "importance"}
    # at first every token weighs 1, and the gradient is not 0
    np.testing.assert_allclose(
        layer.apply({"params": params}, x), plain.apply({"params": rest}, x), atol=1e-6
    )
    assert np.abs(gradient(layer, params, x, ("importance", "kernel"))).min() > 0
    assert np.abs(gradient(layer, params, x, ("importance", "bias"))) > 0
    # what was learned: feature 0 makes important; without drops it weighs only
    params["importance"]["kernel"] = params["importance"]["kernel"].at[0].set(9.0)
    params["importance"]["bias"] += 0.5
    weight = 2 * jax.nn.sigmoid(9 * x[..., :1] + 0.5)
    found = layer.apply({"params": params}, x)
    np.testing.assert_allclose(found, weight * plain.apply({"params": rest}, x), atol=1e-5)
    # with drops the important ones are served
    _, sown = layer.apply({"params": params}, x, train=True, mutable=["moe"])
    assert sown["moe"]["usage"][0].drop_rate > 0.3
    served = np.asarray(layer.apply({"params": params}, x, train=True)).any(-1)
    same_choice = jnp.broadcast_to(jnp.ones(D), x.shape).at[..., 0].set(x[..., 0])
    params["router_kernel"] = params["router_kernel"].at[0].set(0.0)
    served = np.asarray(layer.apply({"params": params}, same_choice, train=True)).any(-1)
    assert 0 < served.sum() < served.size
    assert x[..., 0][served].min() > x[..., 0][~served].max()


@pytest.mark.parametrize("kind", ["token", "context"])
def test_semantic_routing(x, kind):
    config = replace(CONFIG, capacity=None)
    plain, layer = MoELayer(config), MoELayer(replace(config, semantic_routing=kind))
    params = layer.init(jax.random.key(1), x)["params"]
    rest = {name: leaf for name, leaf in params.items() if name != "semantic"}
    expected = plain.apply({"params": rest}, x)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-6)
    for name in params["semantic"]:
        assert np.abs(gradient(layer, params, x, ("semantic", name))).max() > 0
    # P = -2 turns what the router reads around, and nothing that the experts read
    params["semantic"]["kernel"] = -2 * jnp.eye(D)
    found = layer.apply({"params": params}, x)
    turned = plain.apply({"params": {**rest, "router_kernel": -rest["router_kernel"]}}, x)
    np.testing.assert_allclose(found, turned, atol=1e-5)
    assert np.abs(found - expected).max() > 0.1
    # no token reads a later one
    if kind == "context":
        params["semantic"]["context_kernel"] = 3 * jnp.eye(D)
        found = layer.apply({"params": params}, x)
    prefix = layer.apply({"params": params}, x[:, :5])
    np.testing.assert_allclose(found[:, :5], prefix, atol=1e-5)


def test_running_mean_leaves_out_padding_and_nan(x):
    mask = np.ones((2, S), bool)
    mask[0, :3] = mask[1, 5] = False
    bad = np.array(x)
    bad[1, 2, 0] = np.nan
    found = running_mean(jnp.asarray(bad).reshape(-1, D), jnp.asarray(mask).reshape(-1), 2)
    mask[1, 2] = False
    for group in range(2):
        for step in range(S):
            seen = np.asarray(x)[group, : step + 1][mask[group, : step + 1]]
            expected = seen.mean(0) if len(seen) else np.zeros(D)
            np.testing.assert_allclose(found[group * S + step], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["zero", "copy", "constant"])
def test_overflow_to_the_null_expert(x, kind):
    """Dropped choices get weight * null(x); nothing else changes."""
    routing = RoutingConfig(num_experts=4, free_experts=(kind,))
    config = replace(CONFIG, routing=routing)
    lossy, layer = MoELayer(config), MoELayer(replace(config, free_overflow=True))
    variables = layer.init(jax.random.key(2), x)
    rows, params = x.reshape(-1, D), variables["params"]
    wanted = layer.apply(variables, rows, method="route")
    served = layer.apply(variables, x, train=True).reshape(-1, D)
    dropped = lossy.apply(variables, x, train=True).reshape(-1, D)
    _, sown = lossy.apply(variables, x, train=True, mutable=["moe"])
    assert sown["moe"]["usage"][0].drop_rate > 0.3
    # the lost weight: all of it minus what a capacity leaves
    mix = jnp.ones((len(rows), 1))
    if kind == "constant":
        mix = jax.nn.softmax(rows @ params["constant_kernel"][0])[:, :1]
    answer = {"zero": 0 * rows, "copy": rows, "constant": mix * rows}[kind]
    added = np.asarray(served - dropped)
    if kind == "zero":
        assert not added.any()
        return
    lost = added[:, 0] / np.asarray(answer)[:, 0]
    np.testing.assert_allclose(added, lost[:, None] * np.asarray(answer), atol=1e-5)
    assert lost.max() > 0.1
    real = np.where(np.asarray(wanted.index) < 4, wanted.weight, 0)
    sums = np.stack([0 * real[:, 0], real[:, 0], real[:, 1], real.sum(-1)], -1)
    assert np.abs(sums - lost[:, None]).min(-1).max() < 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"free_overflow": True}, "without a free expert"),
        ({"semantic_routing": "words"}, "semantic_routing is 'words'"),
        (
            {
                "free_overflow": True,
                "routing": replace(ROUTING, free_experts=("zero",)),
                "capacity": CapacityConfig(renormalise=True),
            },
            "set renormalise=False",
        ),
        (
            {
                "token_importance": True,
                "routing": replace(ROUTING, strategy="soft", allow_non_causal=True),
            },
            "routes no single tokens",
        ),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)
