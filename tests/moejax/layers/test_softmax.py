"""Softmax, exclusion, and softmax over the k largest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moejax.layers.softmax import exclude, softmax, top_k_mask, top_k_softmax

LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-50, 50, width=32))


@settings(max_examples=50, deadline=None)
@given(logits=LOGITS)
def test_softmax_sums_to_1_and_agrees_with_jax(logits):
    weights = softmax(logits, axis=-1)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights, jax.nn.softmax(logits, axis=-1), rtol=1e-5, atol=1e-30)


def test_softmax_gradient(getkey):
    logits, target = jax.random.normal(getkey(), (2, 4, 3)), jax.random.normal(getkey(), (2, 4, 3))
    ours = jax.grad(lambda logits: (softmax(logits, axis=1) * target).sum())(logits)
    jaxs = jax.grad(lambda logits: (jax.nn.softmax(logits, axis=1) * target).sum())(logits)
    np.testing.assert_allclose(ours, jaxs, atol=1e-6)


def test_excluded_logits_get_nothing_and_a_row_without_any_is_uniform():
    logits = jnp.asarray([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    weights = softmax(exclude(logits, jnp.asarray([[1, 0, 1], [0, 0, 0]])), axis=-1)
    share = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(weights, [[share, 0, 1 - share], [1 / 3] * 3], rtol=1e-6)
    assert weights[0, 1] == 0


@settings(max_examples=50, deadline=None)
@given(logits=LOGITS, k=st.integers(1, 5))
def test_top_k_keeps_exactly_the_k_largest(logits, k):
    logits = logits + np.float32(0)  # no -0.0, which JAX orders below 0.0
    mask = np.asarray(top_k_mask(logits, k=k))
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    expected = np.zeros_like(logits)
    np.put_along_axis(expected, order, 1, axis=-1)
    np.testing.assert_array_equal(mask, expected)
    weights = top_k_softmax(logits, k=k)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert not np.asarray(weights)[mask == 0].any()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_go_to_the_lowest_index(k):
    mask = top_k_mask(jnp.zeros((1, 4)), k=k)
    np.testing.assert_array_equal(mask, [[1] * k + [0] * (4 - k)])
