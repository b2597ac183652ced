"""Metrics by hand-computed examples."""

import math

import numpy as np
import pytest

from lowering.runtime import compare


def test_equal_arrays():
    x = np.arange(6.0).reshape(2, 3)
    metrics = compare(x, x)
    assert metrics.pcc == pytest.approx(1)
    assert (metrics.relative_l2, metrics.max_abs, metrics.scale) == (0, 0, 5)


def test_scale_error_is_seen_though_the_correlation_is_perfect():
    x = np.array([1.0, -2.0, 3.0])
    metrics = compare(2 * x, x)
    assert metrics.pcc == pytest.approx(1)
    assert metrics.relative_l2 == pytest.approx(1)
    assert metrics.max_abs == 3


def test_constants():
    assert compare(np.full(3, 2.0), np.full(3, 2.0)).pcc == 1
    assert compare(np.full(3, 2.0), np.full(3, 9.0)).pcc == 0
    assert compare(np.zeros(3), np.zeros(3)).relative_l2 == 0


def test_empty():
    assert compare(np.zeros((0, 2)), np.zeros((0, 2))).pcc == 1


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\), expected \(2, 1\)"):
        compare(np.zeros(2), np.zeros((2, 1)))


def test_infinities_must_stand_in_the_same_places():
    x = np.array([1.0, 2.0, -np.inf])
    assert compare(x, x).pcc == pytest.approx(1)
    assert math.isinf(compare(np.array([1.0, 2.0, 3.0]), x).relative_l2)
    assert math.isinf(compare(np.array([1.0, np.nan, -np.inf]), x).max_abs)
