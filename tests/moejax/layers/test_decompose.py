"""Moving average of any odd kernel, and the decomposed linear map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.layers.decompose import (
    DecomposedLinear,
    decompose,
    decomposed_linear,
    moving_average,
)
from moejax.layers.linear import time_linear


def moving_average_by_definition(x: np.ndarray, kernel_size: int) -> np.ndarray:
    half = kernel_size // 2
    steps = np.arange(x.shape[1])[:, None] + np.arange(-half, half + 1)[None, :]
    return x[:, np.clip(steps, 0, x.shape[1] - 1)].mean(axis=2)


@pytest.mark.parametrize("kernel_size", [1, 3, 25, 31])
def test_moving_average(kernel_size, getkey):
    x = jax.random.normal(getkey(), (2, 12, 3))
    expected = moving_average_by_definition(np.asarray(x, np.float64), kernel_size)
    np.testing.assert_allclose(moving_average(x, kernel_size=kernel_size), expected, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(level=st.floats(-100, 100), kernel_size=st.sampled_from([3, 5, 9]))
def test_a_constant_series_is_its_own_trend(level, kernel_size):
    x = jnp.full((1, 6, 2), level, jnp.float32)
    seasonal, trend = decompose(x, kernel_size=kernel_size)
    np.testing.assert_allclose(trend, x, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(seasonal, 0, atol=1e-4)


def test_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size is 4"):
        moving_average(jnp.zeros((1, 6, 2)), kernel_size=4)


def test_equal_weights_undo_the_decomposition(getkey):
    x, kernel = jax.random.normal(getkey(), (2, 6, 3)), jax.random.normal(getkey(), (6, 4))
    bias = jnp.ones(4)
    both = decomposed_linear(x, kernel, bias, kernel, bias, kernel_size=5)
    np.testing.assert_allclose(both, time_linear(x, kernel, 2 * bias), atol=1e-5)


def test_gradient_reaches_every_weight_and_the_window(getkey):
    x = jax.random.normal(getkey(), (2, 6, 3))
    model = DecomposedLinear(6, 4, None, 5)
    variables = model.init(getkey(), x)

    def loss(variables, x):
        return jnp.square(model.apply(variables, x)).sum()

    for gradient in jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(variables, x)):
        assert np.abs(gradient).min() > 0


def test_individual_with_equal_weights_is_shared(getkey):
    x = jax.random.normal(getkey(), (2, 6, 3))
    shared = DecomposedLinear(6, 4, None, 5)
    variables = shared.init(getkey(), x)

    def repeat(path, leaf):
        if path[-1].key == "bias":
            return jnp.broadcast_to(leaf[:, None], (4, 3))
        return jnp.broadcast_to(leaf[None], (3, 6, 4))

    repeated = jax.tree_util.tree_map_with_path(repeat, variables)
    individual = DecomposedLinear(6, 4, 3, 5)
    np.testing.assert_allclose(individual.apply(repeated, x), shared.apply(variables, x), atol=1e-5)
