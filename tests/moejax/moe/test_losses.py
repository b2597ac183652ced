"""The load-balancing loss and its normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe.losses import load_balance


@pytest.mark.parametrize("balanced_value", [1.0, 2.0])
def test_extremes(balanced_value):
    uniform, assigned = jnp.full((8, 4), 0.25), jnp.tile(jnp.eye(4), (2, 1))
    loss = load_balance(uniform, assigned, balanced_value=balanced_value)
    np.testing.assert_allclose(loss, balanced_value)
    collapsed = jnp.tile(jnp.eye(4)[:1], (8, 1))
    loss = load_balance(collapsed, collapsed, balanced_value=balanced_value)
    np.testing.assert_allclose(loss, 4 * balanced_value)


def test_value_does_not_depend_on_top_k(getkey):
    probs = jax.nn.softmax(jax.random.normal(getkey(), (6, 4)))
    assigned = jnp.ones((6, 4))
    np.testing.assert_allclose(load_balance(probs, assigned), 1.0, rtol=1e-6)


def test_dense_mixture_measures_variation_of_mean_weights(getkey):
    probs = jax.nn.softmax(jax.random.normal(getkey(), (6, 4)))
    mean = np.asarray(probs).mean(axis=0)
    expected = 1 + (mean.std() / mean.mean()) ** 2
    np.testing.assert_allclose(load_balance(probs, probs), expected, rtol=1e-5)


def test_gradient_lowers_the_overused_expert():
    probs = jnp.asarray([[0.7, 0.3], [0.6, 0.4]])
    gradient = jax.grad(load_balance)(probs, jnp.asarray([[1.0, 0.0], [1.0, 0.0]]))
    assert (gradient[:, 0] > gradient[:, 1]).all()


def test_nothing_assigned_is_finite():
    assert load_balance(jnp.full((2, 2), 0.5), jnp.zeros((2, 2))) == 0
