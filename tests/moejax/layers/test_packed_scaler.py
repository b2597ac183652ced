"""Location and scale of packed series, against float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.layers.packed_scaler import packed_scale

SAMPLE = np.asarray([[1, 1, 1, 2, 2, 0]])
VARIATE = np.asarray([[0, 1, 0, 0, 0, 0]])


def expected(x, counted):
    """The definition, token by token."""
    loc, scale = np.zeros((1, 6, 1)), np.ones((1, 6, 1))
    for t in np.flatnonzero(SAMPLE[0]):
        series = (SAMPLE[0] == SAMPLE[0, t]) & (VARIATE[0] == VARIATE[0, t])
        values = x[0][series][counted[0][series]].astype(np.float64)
        loc[0, t] = values.mean() if len(values) else 0.0
        spread = values.var(ddof=1) if len(values) > 1 else 0.0
        scale[0, t] = np.sqrt(spread + 1e-5)
    return loc, scale


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
def test_equals_float64(offset):
    rng = np.random.default_rng(0)
    x = (offset + rng.normal(0, 3, (1, 6, 4))).astype(np.float32)
    counted = rng.random(x.shape) < 0.7
    counted[0, 1] = [True, False, False, False]  # a series with a single cell
    found = packed_scale(jnp.asarray(x), jnp.asarray(counted), jnp.asarray(SAMPLE), VARIATE)
    for ours, exact in zip(found, expected(x, counted), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-7 if offset else 2e-6, atol=1e-6)


def test_a_constant_series_has_no_spread_and_an_empty_one_no_mean():
    x = np.full((1, 6, 4), 12345.678, np.float32)
    counted = np.ones(x.shape, bool)
    counted[0, 3:5] = False
    loc, scale = packed_scale(jnp.asarray(x), jnp.asarray(counted), jnp.asarray(SAMPLE), VARIATE)
    np.testing.assert_array_equal(loc[0, :, 0], [x[0, 0, 0]] * 3 + [0.0] * 3)
    np.testing.assert_allclose(scale[0, :, 0], [1e-5**0.5] * 5 + [1.0], rtol=1e-6)
