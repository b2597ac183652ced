"""MoLE: sizes, options, errors, and what must hold whatever the weights are."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax import Forecast, MoLE, MoLEConfig
from moejax.models.mole import SIZES

SMALL = MoLEConfig(
    seq_len=12, pred_len=4, num_channels=3, num_experts=3, kernel_size=5, d_model=8, router_hidden=8
)
OPTIONS = [
    dict(zip(("base", "individual", "router"), values, strict=True))
    for values in itertools.product(
        ("dlinear", "rlinear", "rmlp"), (False, True), ("none", "time", "stats")
    )
]
BASES = ("dlinear", "rlinear", "rmlp")


def small(**changes) -> MoLEConfig:
    if changes.get("router") == "none":
        changes.setdefault("num_experts", 1)
    return dataclasses.replace(SMALL, **changes)


def batch(config: MoLEConfig, seed: int = 0, size: int = 2):
    """Windows [B, S, C] and marks [B, F]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, config.seq_len, config.num_channels))
    mark = rng.uniform(-0.5, 0.5, size=(size, config.num_time_features))
    return x.astype(np.float32), mark.astype(np.float32)


@functools.cache
def build(config: MoLEConfig):
    """A jitted forecast function (params, x, mark) and random parameters."""
    model, rng = MoLE(config), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *batch(config))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return jax.jit(lambda params, x, mark: model.apply({"params": params}, x, mark)), params


def count(config: MoLEConfig) -> int:
    shapes = jax.eval_shape(MoLE(config).init, jax.random.key(0), *batch(config))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mole_debug", 1480),
        ("mole_dlinear_96", 75_448),
        ("mole_dlinear_336", 259_768),
        ("mole_rlinear_96", 38_214),
        ("mole_rlinear_336", 130_374),
        ("mole_rmlp_96", 137_126),
        ("mole_rmlp_336", 475_286),
    ],
)
def test_named_sizes_have_the_published_parameter_counts(name, parameters):
    assert count(SIZES[name]) == parameters


def test_every_named_size_is_counted():
    assert len(SIZES) == 7
    assert count(dataclasses.replace(SIZES["mole_dlinear_96"], num_experts=1)) == 18_715
    assert count(dataclasses.replace(SIZES["mole_dlinear_336"], num_experts=1)) == 64_795


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: "-".join(map(str, options.values()))
)
def test_shapes_of_every_combination(options):
    config = small(**options)
    x, mark = batch(config)
    forecast, variables = jax.eval_shape(MoLE(config).init_with_output, jax.random.key(0), x, mark)
    assert isinstance(forecast, Forecast)
    assert forecast.y.shape == (2, 4, 3)
    assert forecast.gate.shape == (2, config.num_experts, 3)
    assert forecast.aux_loss.shape == ()
    assert {leaf.dtype for leaf in jax.tree.leaves((forecast, variables))} == {jnp.dtype("float32")}
    assert ("router" in variables["params"]) == (config.router != "none")
    assert ("revin" in variables["params"]) == (config.base != "dlinear")


def test_parameter_names():
    def names(config):
        shapes = jax.eval_shape(MoLE(config).init, jax.random.key(0), *batch(config))["params"]
        paths = jax.tree_util.tree_flatten_with_path(shapes)[0]
        return {"/".join(key.key for key in path): leaf.shape for path, leaf in paths}

    router = {
        "router/hidden/kernel": (4, 8),
        "router/hidden/bias": (8,),
        "router/output/kernel": (8, 9),
        "router/output/bias": (9,),
    }
    assert names(SMALL) == router | {
        "experts/seasonal/kernel": (12, 12),
        "experts/seasonal/bias": (12,),
        "experts/trend/kernel": (12, 12),
        "experts/trend/bias": (12,),
    }
    assert names(small(base="rmlp", individual=True, pred_len=2)) == router | {
        "temporal/hidden/kernel": (12, 8),
        "temporal/hidden/bias": (8,),
        "temporal/output/kernel": (8, 12),
        "temporal/output/bias": (12,),
        "experts/kernel": (3, 12, 6),
        "experts/bias": (6, 3),
        "revin/scale": (3,),
        "revin/bias": (3,),
    }
    assert "revin/scale" not in names(small(base="rlinear", revin=False))


# Properties


@pytest.mark.parametrize("router", ["time", "stats"])
def test_weights_sum_to_1(router):
    config = small(router=router)
    apply, params = build(config)

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10_000), scale=st.floats(0, 100))
    def check(seed, scale):
        x, mark = batch(config, seed)
        gate = apply(params, scale * x, mark).gate
        np.testing.assert_allclose(gate.sum(axis=1), 1, rtol=1e-5)
        assert (np.asarray(gate) >= 0).all()

    check()


def test_top_k_uses_k_experts():
    config = small(router="stats", top_k=2, router_layers=3, load_balance_weight=0.5)
    apply, params = build(config)
    forecast = apply(params, *batch(config, size=6))
    assert ((np.asarray(forecast.gate) > 0).sum(axis=1) == 2).all()
    assert 0.4 < float(forecast.aux_loss) <= 0.5 * config.num_experts


@pytest.mark.parametrize("base", BASES)
def test_mixture_of_one_expert_is_the_base_model(base):
    mixture, params = build(small(base=base, num_experts=1))
    single, _ = build(small(base=base, router="none"))
    x, mark = batch(SMALL)
    rest = {name: leaf for name, leaf in params.items() if name != "router"}
    forecast = mixture(params, x, mark)
    np.testing.assert_allclose(forecast.y, single(rest, x, mark).y, rtol=1e-6)
    np.testing.assert_array_equal(forecast.gate, 1)


@pytest.mark.parametrize("base", BASES)
def test_experts_with_equal_weights_are_one_expert(base):
    mixture, params = build(small(base=base))
    single, _ = build(small(base=base, router="none"))
    x, mark = batch(SMALL)
    first = dict(params, experts=jax.tree.map(lambda leaf: leaf[..., :4], params["experts"]))
    equal = dict(
        params, experts=jax.tree.map(lambda leaf: np.concatenate([leaf] * 3, -1), first["experts"])
    )
    del first["router"]
    np.testing.assert_allclose(
        mixture(equal, x, mark).y, single(first, x, mark).y, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("base", BASES)
def test_individual_with_equal_weights_is_shared(base):
    shared, params = build(small(base=base))
    individual, _ = build(small(base=base, individual=True))

    def repeat(leaf):
        shape = (3, *leaf.shape) if leaf.ndim == 2 else (*leaf.shape, 3)
        return np.broadcast_to(leaf[None] if leaf.ndim == 2 else leaf[:, None], shape)

    repeated = dict(params, experts=jax.tree.map(repeat, params["experts"]))
    inputs = batch(SMALL)
    np.testing.assert_allclose(
        individual(repeated, *inputs).y, shared(params, *inputs).y, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("base", ["rlinear", "rmlp"])
def test_a_shifted_series_has_a_shifted_forecast(base):
    apply, params = build(small(base=base))

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50))
    def check(seed, shift):
        x, mark = batch(SMALL, seed)
        moved = apply(params, x + shift, mark).y
        np.testing.assert_allclose(moved, apply(params, x, mark).y + shift, atol=2e-3)

    check()


@pytest.mark.parametrize("base", BASES)
def test_channels_are_independent_and_can_be_permuted(base):
    """With one weight for all channels (and equal RevIN) a permutation passes through."""
    apply, params = build(small(base=base, router="none"))
    if "revin" in params:
        params = dict(params, revin=jax.tree.map(np.ones_like, params["revin"]))
    x, mark = batch(SMALL)
    order = np.asarray([2, 0, 1])
    np.testing.assert_allclose(
        apply(params, x[:, :, order], mark).y, apply(params, x, mark).y[:, :, order], rtol=1e-5
    )


def test_windows_of_a_batch_do_not_mix():
    apply, params = build(small(base="rmlp", router="stats"))
    x, mark = batch(SMALL)
    alone = apply(params, np.stack([x[1], x[1]]), mark)
    np.testing.assert_allclose(alone.y[0], apply(params, x, mark).y[1], rtol=1e-5)


# Training


def test_dropouts_need_train_and_a_key():
    config = small(base="rlinear", dropout=0.5, head_dropout=0.5)
    model, (apply, params) = MoLE(config), build(config)
    x, mark = batch(config)

    @jax.jit
    def train(key):
        return model.apply({"params": params}, x, mark, train=True, rngs={"dropout": key})

    calm = apply(params, x, mark)
    runs = [train(jax.random.key(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0].y, runs[1].y)
    assert not np.allclose(runs[0].y, runs[2].y)
    assert not np.allclose(runs[0].y, calm.y)
    assert (np.asarray(runs[0].gate) == 0).any()
    np.testing.assert_allclose(runs[0].gate.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("router", ["time", "stats"])
def test_balance_loss_has_a_gradient_for_the_router_only(router):
    config = small(router=router, load_balance_weight=0.1)
    _, params = build(config)

    def loss(params):
        return MoLE(config).apply({"params": params}, *batch(config)).aux_loss

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(gradient["experts"]))
    assert np.abs(gradient["router"]["output"]["kernel"]).max() > 0


def test_a_training_loop_needs_only_jax_and_optax():
    model = MoLE(SMALL)
    x, mark = batch(SMALL, size=16)
    target = x[:, -4:] + 1
    params = model.init(jax.random.key(0), x, mark)
    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        def loss(params):
            forecast = model.apply(params, x, mark)
            return jnp.mean((forecast.y - target) ** 2) + forecast.aux_loss

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimiser.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "nlinear"}, "base is 'nlinear'; choose one of 'dlinear', 'rlinear', 'rmlp'"),
        ({"router": "random"}, "router is 'random'; choose one of 'none', 'time', 'stats'"),
        ({"seq_len": 0}, "seq_len is 0; it must be a whole number >= 1"),
        ({"pred_len": 2.5}, "pred_len is 2.5; it must be a whole number"),
        ({"kernel_size": 24}, "kernel_size is 24; a moving average needs an odd one"),
        ({"num_experts": 4, "router": "none"}, "num_experts is 4 with router 'none'"),
        ({"head_dropout": 1.0}, "head_dropout is 1.0; it must be a number"),
        ({"head_dropout": 0.2, "router": "stats"}, "head_dropout is 0.2 .* needs router 'time'"),
        ({"dropout": 0.1}, "dropout is 0.1 with base 'dlinear'.* needs base 'rlinear'"),
        ({"top_k": 2}, "top_k is 2 .* needs router 'stats'"),
        ({"top_k": 5, "router": "stats"}, "top_k is 5; it must be 1 to num_experts=3"),
        ({"top_k": 0, "router": "stats"}, "top_k is 0; it must be 1 to num_experts=3"),
        ({"router_layers": 4}, "router_layers is 4; choose one of 2, 3"),
        ({"load_balance_weight": -1.0}, "load_balance_weight is -1.0; it must be >= 0"),
        ({"load_balance_weight": 0.1, "num_experts": 1, "router": "none"}, "it needs router"),
    ],
    ids=str,
)
def test_bad_configs_name_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("x_shape", "mark_shape", "message"),
    [
        ((2, 11, 3), (2, 4), "seq_len is 11, but this model has seq_len=12"),
        ((2, 12, 7), (2, 4), "num_channels is 7, but this model has num_channels=3"),
        ((12, 3), (2, 4), r"x has shape \(12, 3\); expected \[batch, seq_len, num_channels\]"),
        ((2, 12, 3), (2, 12, 4), r"mark has shape \(2, 12, 4\); router 'time' needs \(2, 4\)"),
        ((2, 12, 3), None, "mark has shape None"),
    ],
)
def test_bad_inputs_say_what_was_found(x_shape, mark_shape, message):
    mark = None if mark_shape is None else jnp.zeros(mark_shape)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(MoLE(SMALL).init, jax.random.key(0), jnp.zeros(x_shape), mark)


def test_only_the_time_router_needs_the_calendar():
    for config in (small(router="stats"), small(router="none")):
        jax.eval_shape(MoLE(config).init, jax.random.key(0), batch(config)[0])
