"""What depends on the step: the ramps, and a layer that is compiled once for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.layer import LossWeights, MoEConfig, MoELayer
from moejax.moe.schedule import Schedule
from moejax.moe.usage import aux_loss

ALL = Schedule(warmup_steps=10, capacity_ramp_steps=4, aux_ramp_steps=5, aux_scale=3.0)


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        ("warmup", {0: 0.0, 1: 0.1, 9: 0.9, 10: 1.0, 10**6: 1.0}),
        ("capacity", {0: 0.0, 1: 0.25, 4: 1.0, 5: 1.0}),
        ("aux", {0: 0.0, 1: 0.6, 5: 3.0, 6: 3.0}),
    ],
)
def test_ramps(ramp, values):
    traced = jax.jit(lambda step: getattr(ALL, ramp)(step))
    for step, expected in values.items():
        np.testing.assert_allclose(traced(jnp.int32(step)), expected, rtol=1e-6)
    assert traced._cache_size() == 1
    assert getattr(ALL, ramp)(None) == expected
    assert getattr(Schedule(), ramp)(jnp.int32(0)) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"capacity_ramp_steps": 0.5}, "capacity_ramp_steps is 0.5"),
        ({"aux_scale": -1.0}, "aux_scale is -1"),
    ],
)
def test_bad_schedules(fields, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)


def test_a_layer_over_steps(getkey):
    """Warm-up, growing capacity and growing losses, from one compilation."""
    x = jax.random.normal(getkey(), (2, 24, 6)) + 1
    config = MoEConfig(
        d_model=6,
        d_ff=8,
        routing=RoutingConfig(num_experts=4),
        num_shared_experts=1,
        capacity=CapacityConfig(factor=1.0, minimum=2),
        losses=LossWeights(load_balance=0.5, z=0.1),
        schedule=ALL,
        dispatch="dense",
    )
    layer = MoELayer(config)
    shapes = jax.eval_shape(layer.init, getkey(), x)
    variables = jax.tree.map(lambda leaf: jax.random.normal(getkey(), leaf.shape) / 2, shapes)

    @jax.jit
    def run(params, step):
        def loss(params):
            y, sown = layer.apply({"params": params}, x, step=step, train=True, mutable=["moe"])
            return jnp.sum(y**2), (y, sown["moe"])

        return jax.grad(loss, has_aux=True)(params)

    grads, found = {}, {}
    for step in (0, 2, 4, 10, 50):
        grads[step], found[step] = run(variables["params"], jnp.int32(step))
    assert run._cache_size() == 1
    final = found[50][0]
    np.testing.assert_array_equal(found[10][0], final)
    # at step 0 the shared expert alone; from step 4 on the capacity is full and only g grows
    shared = found[0][0]
    np.testing.assert_allclose(found[4][0] - shared, 0.4 * (final - shared), atol=1e-5)
    assert np.abs(final - shared).max() > 0.1
    assert not np.any(grads[0]["experts"]["up"])
    assert np.any(grads[2]["experts"]["up"])
    assert np.any(grads[0]["shared"]["up"])
    kept = {step: int(y[1]["usage"][0].kept.max()) for step, y in found.items()}
    wanted = int(found[50][1]["usage"][0].wanted.max())
    assert wanted > 13
    assert [kept[step] for step in (0, 2, 4, 50)] == [2, 13, min(wanted, 24), min(wanted, 24)]
    # the balance loss grows; the z-loss does not
    terms = {step: sown["aux_loss"][0] for step, (_, sown) in found.items()}
    full = float(terms[50]["load_balance"])
    assert full > 3 * 0.5
    np.testing.assert_allclose(terms[2]["load_balance"], 0.4 * full, rtol=1e-5)
    assert terms[0]["load_balance"] == 0
    np.testing.assert_array_equal(terms[0]["z"], terms[50]["z"])
    np.testing.assert_allclose(aux_loss(found[50][1]), full + float(terms[0]["z"]), rtol=1e-6)
