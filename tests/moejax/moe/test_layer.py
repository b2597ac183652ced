"""MoELayer: its output, what it sows, its state, and its use in someone else's module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moejax.moe.balancing import update_router_state
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.dispatch import dispatch
from moejax.moe.layer import LossWeights, MoEConfig, MoELayer
from moejax.moe.routing import route
from moejax.moe.usage import aux_loss, router_counts

D, S = 6, 9


def make(x, routing=None, **fields):
    """A layer, its variables and its config; `routing` are fields."""
    routing = RoutingConfig(**{"num_experts": 4, **(routing or {})})
    config = MoEConfig(d_model=x.shape[-1], d_ff=8, routing=routing, **fields)
    layer = MoELayer(config)
    return layer, layer.init(jax.random.key(1), x), config


@pytest.fixture
def x(getkey):
    return jax.random.normal(getkey(), (3, S, D))


@pytest.mark.parametrize("expert", ["swiglu", "gelu"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_is_router_then_dispatch(x, expert, use_bias):
    layer, variables, config = make(x, expert=expert, use_bias=use_bias)
    params = variables["params"]
    rows = x.reshape(-1, D)
    routing = route(rows @ params["router_kernel"], config.routing)
    expected = dispatch(rows, routing, params["experts"], "dense").reshape(x.shape)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)
    assert ("up_bias" in params["experts"]) is use_bias
    assert ("gate" in params["experts"]) is (expert == "swiglu")


def test_sows_usage_and_losses(x):
    weights = LossWeights(load_balance=0.5, sequence_balance=0.1, z=0.2, entropy=0.3)
    layer, variables, _ = make(x, losses=weights, capacity=CapacityConfig(factor=0.5))
    mask = jnp.arange(S)[None] < jnp.asarray([[9], [4], [0]])
    _, sown = layer.apply(variables, x, mask, train=True, mutable=["moe"])
    (usage,) = sown["moe"]["usage"]
    assert int(usage.wanted.sum()) == 2 * 13
    assert int(usage.invalid) == 27 - 13
    assert 0 < float(usage.drop_rate) < 1
    np.testing.assert_allclose(1 - usage.kept.sum() / 26, usage.drop_rate, rtol=1e-5)
    assert float(usage.utilisation.max()) <= 1
    assert float(aux_loss(sown["moe"])) > 0.5
    _, sown = layer.apply(variables, x, mask, mutable=["moe"])
    assert float(sown["moe"]["usage"][0].drop_rate) == 0


def test_padding_changes_nothing(x):
    layer, variables, _ = make(x, capacity=CapacityConfig(factor=0.7, scope="sequence"))
    mask = jnp.ones((3, S + 4), bool).at[:, S:].set(False)
    padded = jnp.concatenate([x, 50 * jnp.ones((3, 4, D))], axis=1)
    plain = layer.apply(variables, x)
    longer = layer.apply(variables, padded, mask)
    np.testing.assert_allclose(longer[:, :S], plain, atol=1e-5)
    assert not np.asarray(longer[:, S:]).any()


def test_evaluation_does_not_depend_on_the_batch(x):
    layer, variables, _ = make(x)
    together = layer.apply(variables, x)
    for row in range(3):
        alone = layer.apply(variables, x[row : row + 1])
        np.testing.assert_allclose(together[row : row + 1], alone, atol=1e-5)
    prefix = layer.apply(variables, x[:, :4])
    np.testing.assert_allclose(together[:, :4], prefix, atol=1e-5)


@pytest.mark.parametrize("strategy", ["expert_choice", "soft"])
def test_strategies_over_sequences(x, strategy):
    routing = {"strategy": strategy, "allow_non_causal": True, "slots_per_expert": 2}
    layer, variables, _ = make(x, routing)
    y = layer.apply(variables, x)
    np.testing.assert_allclose(y[1:2], layer.apply(variables, x[1:2]), atol=1e-5)
    assert y.shape == x.shape
    assert np.abs(y).max() > 0
    mask = jnp.zeros((3, S), bool)
    assert not np.asarray(layer.apply(variables, x, mask)).any()


def test_shared_and_free_experts(x):
    routing = {"free_experts": ("copy", "zero", "constant"), "use_bias": True, "top_k": 4}
    layer, variables, _ = make(x, routing, num_shared_experts=2, shared_gate=True)
    params = variables["params"]
    assert params["shared"]["up"].shape == (D, 16)
    rows, shared = x.reshape(-1, D), params["shared"]
    hidden = jax.nn.silu(rows @ shared["gate"]) * (rows @ shared["up"])
    expected = hidden @ shared["down"] * jax.nn.sigmoid(rows @ params["shared_gate"])
    probs = jax.nn.softmax(rows @ params["router_kernel"])
    order = np.argsort(-np.asarray(probs), axis=-1)[:, :4]
    kept = np.take_along_axis(np.asarray(probs), order, -1)
    weights = np.zeros_like(probs)
    np.put_along_axis(weights, order, kept / kept.sum(-1, keepdims=True), -1)
    for e in range(4):
        one = jax.tree.map(lambda leaf, e=e: leaf[e], params["experts"])
        hidden = jax.nn.silu(rows @ one["gate"]) * (rows @ one["up"])
        expected += weights[:, e : e + 1] * (hidden @ one["down"])
    # a copy, nothing, and a constant expert that begins as half a copy
    expected += (weights[:, 4:5] + 0.5 * weights[:, 6:7]) * rows
    found = layer.apply(variables, x).reshape(-1, D)
    mix = jax.nn.softmax(rows @ params["constant_kernel"][0])[:, :1]
    expected += weights[:, 6:7] * (mix - 0.5) * rows
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bias_balances_the_load(getkey):
    x = jax.random.normal(getkey(), (4, 64, D)) + 1
    routing = {"strategy": "noaux_tc", "score": "sigmoid", "num_experts": 8}
    layer, variables, _ = make(x, routing)
    assert "router_state" in variables
    state = variables["router_state"]

    @jax.jit
    def step(state):
        _, sown = layer.apply(variables | {"router_state": state}, x, train=True, mutable=["moe"])
        counts = router_counts(sown["moe"], state)
        return update_router_state(state, counts, rate=0.02), sown["moe"]["usage"][0].imbalance

    state, first = step(state)
    for _ in range(60):
        state, last = step(state)
    assert float(last) < 0.5 * float(first)


def test_jitter_acts_in_training_only(x):
    layer, variables, _ = make(x, {"input_jitter": 0.5}, capacity=None)
    plain = layer.apply(variables, x)
    np.testing.assert_array_equal(plain, layer.apply(variables, x))
    noisy = [
        layer.apply(variables, x, train=True, rngs={"router": jax.random.key(seed)})
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 0
    with pytest.raises(Exception, match="router"):
        layer.apply(variables, x, train=True)


def test_router_stays_in_float32(x):
    layer, variables, _ = make(x)
    y = layer.apply(variables, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    routing = layer.apply(variables, x.reshape(-1, D).astype(jnp.bfloat16), method="route")
    assert routing.weight.dtype == routing.logits.dtype == jnp.float32


@pytest.mark.parametrize("implementation", ["auto", "dense", "gather", "onehot"])
def test_bad_values_stay_where_they_are(x, implementation):
    layer, variables, _ = make(x, dispatch=implementation)
    bad = x.at[1, 2, 3].set(jnp.nan)
    y, sown = layer.apply(variables, bad, mutable=["moe"])
    assert int(sown["moe"]["usage"][0].invalid) == 1
    assert np.isfinite(np.asarray(y)).all()
    assert not np.asarray(y[1, 2]).any()
    keep = jnp.ones((3, S), bool).at[1, 2].set(False)
    expected = layer.apply(variables, x)
    np.testing.assert_allclose(y[keep], expected[keep], atol=1e-5)


@pytest.mark.parametrize("shape", [(0, S, D), (2, 0, D), (1, D), (2, 2, 3, D)])
def test_shapes(shape):
    layer, variables, _ = make(jnp.ones((1, S, D)))
    x = jnp.ones(shape)
    for train in (True, False):
        y, sown = layer.apply(variables, x, train=train, mutable=["moe"])
        assert y.shape == shape
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, sown)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 0}, "d_model is 0"),
        ({"expert": "mlp"}, "expert is 'mlp'"),
        ({"dispatch": "fast"}, "dispatch is 'fast'"),
        ({"shared_gate": True}, "without an expert to gate"),
        ({"num_shared_experts": -1}, "num_shared_experts is -1"),
    ],
)
def test_bad_configs(fields, message):
    defaults = {"d_model": 4, "d_ff": 4, "routing": RoutingConfig(num_experts=2)}
    with pytest.raises(ValueError, match=message):
        MoEConfig(**defaults | fields)


def test_bad_inputs(x):
    layer, variables, _ = make(x)
    with pytest.raises(ValueError, match=r"it must be \[..., S, 6\]"):
        layer.apply(variables, x[..., :5])
    with pytest.raises(ValueError, match="mask has shape"):
        layer.apply(variables, x, jnp.ones((3, 2)))


def test_in_someone_elses_model(getkey):
    """The example of the README: a layer learns, its losses are used, in a module of one's own."""

    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            routing = RoutingConfig(num_experts=4, top_k=2)
            x = nn.Dense(16)(x)
            x = x + MoELayer(MoEConfig(d_model=16, d_ff=32, routing=routing))(x, train=train)
            return nn.Dense(1)(x)

    x = jax.random.normal(getkey(), (8, 16, 5))
    target = jnp.sin(x.sum(-1, keepdims=True))
    model, optimiser = Tiny(), optax.adam(1e-2)
    params = model.init(jax.random.key(0), x)["params"]

    @jax.jit
    def step(params, state):
        def loss(params):
            y, sown = model.apply({"params": params}, x, train=True, mutable=["moe"])
            return jnp.mean((y - target) ** 2) + aux_loss(sown["moe"])

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimiser.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
