"""Reversible instance normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moejax.layers.revin import RevIN, revin_denorm, revin_norm, revin_stats

SCALE, BIAS = jnp.asarray([0.7, 1.0, 2.0]), jnp.asarray([0.1, 0.0, -0.3])


def test_variance_is_the_populations():
    x = jnp.asarray([[[1.0], [2.0], [3.0], [6.0]]])
    mean, std = revin_stats(x, eps=1e-5)
    np.testing.assert_allclose(mean, [[[3.0]]])
    np.testing.assert_allclose(std, [[[np.sqrt(3.5 + 1e-5)]]], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_restoring_undoes_normalising(seed, scale, shift):
    x = scale * jax.random.normal(jax.random.key(seed), (2, 8, 3)) + shift
    stats = revin_stats(x, eps=1e-5)
    back = revin_denorm(revin_norm(x, *stats, SCALE, BIAS), *stats, SCALE, BIAS, eps=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-4 * (scale + abs(shift)))


def test_normalised_window_has_mean_0_and_std_1(getkey):
    x = 5 + 3 * jax.random.normal(getkey(), (2, 50, 3))
    window = revin_norm(x, *revin_stats(x, eps=1e-5), jnp.ones(3), jnp.zeros(3))
    np.testing.assert_allclose(window.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(window.std(axis=1), 1, atol=1e-4)


def test_a_constant_window_stays_finite(getkey):
    x = jnp.full((1, 8, 3), 4.0)
    model = RevIN(3)
    variables = model.init(getkey(), x, method=lambda model, x: model.normalise(x, model.stats(x)))

    def there_and_back(model, x):
        stats = model.stats(x)
        return model.restore(model.normalise(x, stats), stats)

    np.testing.assert_allclose(model.apply(variables, x, method=there_and_back), x)


def test_statistics_carry_no_gradient(getkey):
    x = jax.random.normal(getkey(), (1, 8, 3))
    gradient = jax.grad(lambda x: sum(stat.sum() for stat in revin_stats(x, eps=1e-5)))(x)
    np.testing.assert_array_equal(gradient, 0)
