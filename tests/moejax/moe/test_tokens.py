"""What a layer may learn about single tokens: their importance, and what the router reads."""

from dataclasses import replace
from functools import partial

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


def start(layer, x):
    """Random parameters; those that begin at 0 do so."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        begins_at_zero = path[0].key in ("importance", "semantic")
        return jnp.float32(rng.normal(0, 0 if begins_at_zero else 0.5, leaf.shape))

    return jax.tree_util.tree_map_with_path(fill, shapes)


def without(params, name):
    """The parameters of the layer that lacks the option."""
    return {key: leaf for key, leaf in params.items() if key != name}


def evaluation(layer):
    """params, x -> y."""
    return jax.jit(lambda params, x: layer.apply({"params": params}, x))


def training(layer):
    """params, x -> (gradients of a loss on y, (y, the share of choices that is dropped))."""

    def loss(params, x):
        y, sown = layer.apply({"params": params}, x, train=True, mutable=["moe"])
        return jnp.sum(y**3), (y, sown["moe"]["usage"][0].drop_rate)

    return jax.jit(jax.grad(loss, has_aux=True))


def test_importance(x):
    layer = MoELayer(replace(CONFIG, token_importance=True))
    params = start(layer, x)
    plain, run, train = evaluation(MoELayer(CONFIG)), evaluation(layer), training(layer)
    expected = plain(without(params, "importance"), x)
    # at first every token weighs 1, and the gradient is not 0
    np.testing.assert_allclose(run(params, x), expected, atol=1e-6)
    grads, (_, drop_rate) = train(params, x)
    assert drop_rate > 0.3
    assert np.abs(grads["importance"]["kernel"]).min() > 0
    assert np.abs(grads["importance"]["bias"]) > 0
    # what was learned: feature 0 makes important; without drops it weighs only
    kernel = params["importance"]["kernel"].at[0].set(9.0)
    params["importance"] = {"kernel": kernel, "bias": jnp.float32(0.5)}
    weight = 2 * jax.nn.sigmoid(9 * x[..., :1] + 0.5)
    np.testing.assert_allclose(run(params, x), weight * expected, atol=1e-5)
    # where all want the same experts, the important ones are served
    params["router_kernel"] = params["router_kernel"].at[0].set(0.0)
    alike = jnp.ones_like(x).at[..., 0].set(x[..., 0])
    served = np.asarray(train(params, alike)[1][0]).any(-1)
    assert 0 < served.sum() < served.size
    assert x[..., 0][served].min() > x[..., 0][~served].max()


@pytest.mark.parametrize("kind", ["token", "context"])
def test_semantic_routing(x, kind):
    config = replace(CONFIG, capacity=None)
    layer = MoELayer(replace(config, semantic_routing=kind))
    params = start(layer, x)
    rest = without(params, "semantic")
    plain, run = evaluation(MoELayer(config)), evaluation(layer)
    expected = plain(rest, x)
    np.testing.assert_allclose(run(params, x), expected, atol=1e-6)
    for leaf in jax.tree.leaves(training(layer)(params, x)[0]["semantic"]):
        assert np.abs(leaf).max() > 0
    # P = -2 turns what the router reads around, and nothing that the experts read
    params["semantic"]["kernel"] = -2 * jnp.eye(D)
    found = run(params, x)
    turned = plain({**rest, "router_kernel": -rest["router_kernel"]}, x)
    np.testing.assert_allclose(found, turned, atol=1e-5)
    assert np.abs(found - expected).max() > 0.1
    # no token reads a later one
    if kind == "context":
        params["semantic"]["context_kernel"] = 3 * jnp.eye(D)
    later = x.at[:, 5:].set(1.0)
    np.testing.assert_allclose(run(params, later)[:, :5], run(params, x)[:, :5], atol=1e-5)


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
    params, rows = start(layer, x), x.reshape(-1, D)
    wanted = layer.apply({"params": params}, rows, method="route")
    served, dropped = (
        jax.jit(partial(one.apply, train=True))({"params": params}, x).reshape(-1, D)
        for one in (layer, lossy)
    )
    # the lost weight: all of it minus what a capacity leaves
    answer = {"zero": 0 * rows, "copy": rows}.get(kind)
    if kind == "constant":
        mix = jax.nn.softmax(rows @ params["constant_kernel"][0])
        answer = mix[:, :1] * rows + mix[:, 1:] * params["constant_vector"]
    added = np.asarray(served - dropped)
    if kind == "zero":
        assert not added.any()
        return
    lost = added[:, 0] / np.asarray(answer)[:, 0]
    np.testing.assert_allclose(added, lost[:, None] * np.asarray(answer), atol=1e-5)
    assert (lost > 0.1).sum() > len(rows) / 4
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
