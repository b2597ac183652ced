"""Schedules by hand, and the chains that they drive."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.optim import OptimConfig, learning_rate, make_optimizer


def rates(config, steps, steps_per_epoch=10, epochs=4):
    rate = learning_rate(config, steps_per_epoch=steps_per_epoch, epochs=epochs)
    return [float(rate(step)) for step in steps]


def test_type1_halves_after_the_second_epoch():
    found = rates(OptimConfig(learning_rate=0.8), [0, 9, 10, 19, 20, 29, 30, 40])
    np.testing.assert_allclose(found, [0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.1], rtol=1e-6)


def test_cosine_ends_at_zero():
    config = OptimConfig(learning_rate=0.8, schedule="cosine")
    np.testing.assert_allclose(rates(config, [0, 20, 40]), [0.8, 0.4, 0.0], atol=1e-6)
    assert rates(OptimConfig(learning_rate=0.8, schedule="constant"), [0, 99]) == [0.8, 0.8]


def steps(optimizer, grads):
    params = {"w": jnp.array([1.0, -2.0])}
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update({"w": jnp.array(grad)}, state, params)
        params = optax.apply_updates(params, updates)
    return params["w"]


GRADS = [[0.3, -0.1], [5.0, 0.2], [-0.4, 0.0]]


def test_adam_is_adam():
    ours = make_optimizer(OptimConfig(learning_rate=0.1), steps_per_epoch=100, epochs=1)
    np.testing.assert_array_equal(steps(ours, GRADS), steps(optax.adam(0.1), GRADS))


def test_adamw_and_clipping():
    config = OptimConfig(name="adamw", learning_rate=0.1, weight_decay=0.2, clip_norm=1.0)
    ours = make_optimizer(config, steps_per_epoch=100, epochs=1)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.2))
    np.testing.assert_allclose(steps(ours, GRADS), steps(theirs, GRADS), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "sgd"}, "optim.name is 'sgd'"),
        ({"schedule": "type3"}, "optim.schedule is 'type3'"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"clip_norm": -1.0}, "must not be negative"),
        ({"position_rate": 0.0}, "position_rate is 0.0; it must be above 0"),
        ({"weight_decay": 0.1}, "'adam', which ignores it"),
        ({"schedule": "cosine", "final_share": 1.5}, "final_share"),
        ({"warmup_steps": 5}, "belong to the schedule 'cosine'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**options)


def test_the_update_compiles_into_the_step():
    optimizer = make_optimizer(OptimConfig(), steps_per_epoch=3, epochs=2)
    params = {"w": jnp.ones(3)}
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], -1e-3, rtol=1e-4)


def test_cosine_rises_first_and_keeps_a_share():
    config = OptimConfig(learning_rate=0.8, schedule="cosine", warmup_steps=10, final_share=0.25)
    found = rates(config, [0, 5, 10, 25, 40], steps_per_epoch=10, epochs=4)
    np.testing.assert_allclose(found, [0.0, 0.4, 0.8, 0.5, 0.2], atol=1e-6)


def test_scales_and_biases_need_not_decay():
    config = OptimConfig(name="adamw", learning_rate=0.1, weight_decay=0.5, decay_all=False)
    optimizer = make_optimizer(config, steps_per_epoch=1, epochs=9)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["scale"], 0.0)


def test_position_tables_learn_faster():
    config = OptimConfig(learning_rate=0.1, schedule="constant", position_rate=30.0)
    optimizer = make_optimizer(config, steps_per_epoch=1, epochs=1)
    params = {"encoder": {"relative_bias": jnp.ones(2), "kernel": jnp.ones(2)}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    found = updates["encoder"]
    np.testing.assert_allclose(found["kernel"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(found["relative_bias"], -3.0, rtol=1e-5)
