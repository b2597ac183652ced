"""Filling of gaps agrees with GluonTS's."""

import numpy as np
import pytest
from gluonts.transform import CausalMeanValueImputation

from moejax.forecasting.missing import causal_mean, zeros


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_causal_mean(length, share):
    random = np.random.default_rng(length)
    for _ in range(20):
        values = random.normal(5, 3, length).astype(np.float32)
        values[random.random(length) < share] = np.nan
        if np.isnan(values).all():
            np.testing.assert_array_equal(causal_mean(values), np.zeros(length))
            continue
        with np.errstate(invalid="ignore"):  # it divides 0 by 0, and replaces the result
            expected = CausalMeanValueImputation()(values.copy())
        np.testing.assert_allclose(causal_mean(values), expected, rtol=1e-6)


def test_zeros():
    np.testing.assert_array_equal(zeros(np.array([np.nan, 2.0, np.nan])), [0, 2, 0])
