"""Linear maps over features and over time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.layers.init import uniform_fan_in
from moejax.layers.linear import (
    ACTIVATIONS,
    TimeMLP,
    activate,
    channel_time_linear,
    linear,
    time_linear,
)


def test_linear_by_hand():
    x, kernel = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    bias = jnp.asarray([0.5, 0.0, 0.0])
    np.testing.assert_array_equal(linear(x, kernel, bias), [[1.5, 2.0, -3.0]])
    np.testing.assert_array_equal(linear(x, kernel), [[1.0, 2.0, -3.0]])
    np.testing.assert_array_equal(linear(x, kernel, activation="relu"), [[1.0, 2.0, 0.0]])
    assert linear(jnp.ones((2, 3, 2)), kernel, bias).shape == (2, 3, 3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_keep_large_values_and_zero(name):
    y = activate(jnp.asarray([0.0, 20.0]), name)
    np.testing.assert_allclose(y, [0.0, 1.0 if name == "tanh" else 20.0], rtol=1e-6)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation is 'swish'.*relu"):
        activate(jnp.zeros(1), "swish")


def test_time_linear_maps_time_and_keeps_channels(getkey):
    x = jax.random.normal(getkey(), (2, 5, 3))
    kernel, bias = jax.random.normal(getkey(), (5, 4)), jax.random.normal(getkey(), (4,))
    expected_BCQ = np.swapaxes(np.asarray(x), 1, 2) @ np.asarray(kernel) + np.asarray(bias)
    y_BQC = time_linear(x, kernel, bias)
    np.testing.assert_allclose(y_BQC, np.swapaxes(expected_BCQ, 1, 2), atol=1e-5)


def test_channels_with_equal_weights_are_shared_weights(getkey):
    x = jax.random.normal(getkey(), (2, 5, 3))
    kernel, bias = jax.random.normal(getkey(), (5, 4)), jax.random.normal(getkey(), (4,))
    repeated = jnp.broadcast_to(kernel[None], (3, 5, 4)), jnp.broadcast_to(bias[:, None], (4, 3))
    np.testing.assert_allclose(
        channel_time_linear(x, *repeated), time_linear(x, kernel, bias), atol=1e-5
    )


def test_time_mlp_with_zero_weights_is_identity(getkey):
    x = jax.random.normal(getkey(), (2, 5, 3))
    model = TimeMLP(seq_len=5, num_hidden=4)
    params = jax.tree.map(jnp.zeros_like, model.init(getkey(), x))
    np.testing.assert_array_equal(model.apply(params, x), x)


def test_initial_values_are_those_of_torch(getkey):
    values = uniform_fan_in(16)(getkey(), (16, 500))
    assert values.dtype == jnp.float32
    assert 0.249 < float(jnp.abs(values).max()) <= 0.25
    np.testing.assert_allclose(float(values.std()), 0.25 / np.sqrt(3), rtol=0.03)
