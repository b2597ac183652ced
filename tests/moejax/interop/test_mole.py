"""Published parameters to our pytree and back, in every layout."""

import jax
import numpy as np
import pytest

from moejax.interop.mole import from_published, published_config, to_published
from moejax.models.mole import MoLE, MoLEConfig

SIZES = {"seq_len": 6, "pred_len": 4, "num_channels": 3, "d_model": 5}
CONFIGS = [
    MoLEConfig(**SIZES, base=base, num_experts=experts, router=router, individual=individual)
    for base in ("dlinear", "rlinear", "rmlp")
    for experts, router in ((1, "none"), (1, "time"), (2, "time"))
    for individual in (False, True)
]
CONFIGS += [MoLEConfig(**SIZES, base="rlinear", revin=False)]


def random_params(config: MoLEConfig):
    x = np.zeros((1, config.seq_len, config.num_channels), np.float32)
    mark = np.zeros((1, config.num_time_features), np.float32)
    shapes = jax.eval_shape(MoLE(config).init, jax.random.key(0), x, mark)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_round_trip(config):
    params = random_params(config)
    published = to_published(params, config)
    jax.tree.map(np.testing.assert_array_equal, from_published(published, config), params)
    implied = published_config(published, pred_len=4, num_channels=3)
    if config.base != "rmlp":
        implied = MoLEConfig(**{**vars(implied), "d_model": config.d_model})
    assert implied == config


def test_rows_of_the_projection_are_step_major_and_router_rows_depend_on_the_model():
    """Row p * K + k is our column k * P + p; DLinear's router row c * K + k is our k * C + c."""
    config = MoLEConfig(**SIZES, num_experts=2)
    params = from_published(
        {
            "Linear_Seasonal.weight": np.arange(8.0)[:, None] * np.ones((1, 6)),
            "Linear_Seasonal.bias": np.arange(8.0),
            "Linear_Trend.weight": np.zeros((8, 6)),
            "Linear_Trend.bias": np.zeros(8),
            "Linear_Temporal.0.weight": np.arange(24.0).reshape(6, 4),
            "Linear_Temporal.0.bias": np.arange(6.0),
            "Linear_Temporal.2.weight": np.arange(36.0).reshape(6, 6),
            "Linear_Temporal.2.bias": np.arange(6.0),
        },
        config,
    )
    np.testing.assert_array_equal(params["experts"]["seasonal"]["bias"], [0, 2, 4, 6, 1, 3, 5, 7])
    np.testing.assert_array_equal(
        params["experts"]["seasonal"]["kernel"][0], [0, 2, 4, 6, 1, 3, 5, 7]
    )
    np.testing.assert_array_equal(params["router"]["hidden"]["bias"], np.arange(6.0))
    np.testing.assert_array_equal(params["router"]["output"]["bias"], [0, 2, 4, 1, 3, 5])
    np.testing.assert_array_equal(params["router"]["output"]["kernel"][0], [0, 12, 24, 6, 18, 30])


def test_stacked_and_separate_channels_are_the_same():
    config = MoLEConfig(**SIZES, base="rlinear", num_experts=2, individual=True)
    params = random_params(config)
    published = to_published(params, config)
    for kind in ("weight", "bias"):
        stacked = published.pop(f"Linear.{kind}_per_channel")
        published |= {f"Linear.{c}.{kind}": part for c, part in enumerate(stacked)}
    jax.tree.map(np.testing.assert_array_equal, from_published(published, config), params)


@pytest.mark.parametrize("base", ["dlinear", "rlinear", "rmlp"])
def test_errors_name_the_tensors(base):
    config = MoLEConfig(**SIZES, base=base, num_experts=2)
    published = to_published(random_params(config), config)
    unknown = {**published, "Linear_Extra.weight": np.zeros(2)}
    with pytest.raises(ValueError, match=r"missing nothing, unknown \['Linear_Extra\.weight'\]"):
        from_published(unknown, config)
    missing = {name: a for name, a in published.items() if name != "Linear_Temporal.2.bias"}
    with pytest.raises(ValueError, match=r"missing \['Linear_Temporal\.2\.bias'\]"):
        from_published(missing, config)
    wrong = {**published, "Linear_Temporal.0.bias": np.zeros(7)}
    with pytest.raises(ValueError, match=r"Linear_Temporal\.0\.bias has shape \(7,\).*\(6,\)"):
        from_published(wrong, config)


def test_errors_of_parameters_and_configs():
    config = MoLEConfig(**SIZES)
    params = random_params(config)
    with pytest.raises(ValueError, match=r"missing \['revin/bias', 'revin/scale'\]"):
        to_published({**params, "experts": params["experts"]["trend"]}, CONFIGS[8])
    with pytest.raises(ValueError, match="router 'stats' has no published parameters"):
        to_published(params, MoLEConfig(**SIZES, router="stats"))
    with pytest.raises(ValueError, match="tensors of no known model"):
        published_config({"encoder.weight": np.zeros((2, 2))}, pred_len=4, num_channels=3)
    with pytest.raises(ValueError, match=r"has 16 rows; expected a multiple of pred_len=5"):
        published_config(to_published(params, config), pred_len=5, num_channels=3)
