"""Regions computed in another way give the same numbers, and decline what they don't serve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.generation import cpu
from moejax.generation.substitute import substitute
from moejax.layers.attention import attention
from moejax.layers.linear import linear

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape).astype(np.float32))


@pytest.mark.parametrize(("rows", "outputs"), [(2, 24), (8, 2050), (5, 7)])
def test_few_rows_equal_a_matmul(rows, outputs):
    x, kernel, bias = draw(rows, 1, 16), draw(16, outputs), draw(outputs)
    found = jax.jit(lambda *given: cpu.few_rows_linear(*given, activation="silu"))(x, kernel, bias)
    np.testing.assert_allclose(found, linear(x, kernel, bias, activation="silu"), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 100])
def test_other_numbers_of_rows_are_declined(rows):
    assert cpu.few_rows_linear(draw(rows, 16), draw(16, 4)) is None
    assert cpu.few_rows_linear(draw(4, 15), draw(15, 4)) is None


@pytest.mark.parametrize("whole", [False, True])
def test_attention_in_blocks_equals_attention(whole, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", 4)
    q, k, v = draw(2, 4, 10, 8), draw(2, 2, 10, 8), draw(2, 2, 10, 6)
    mask = jnp.asarray(RNG.random((2, 1, 10 if whole else 1, 10)) < 0.7).at[..., 0].set(True)
    found = cpu.blocked_attention(q, k, v, mask, scale=0.3, causal=True)
    wanted = attention(q, k, v, mask, scale=0.3, causal=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert cpu.blocked_attention(q, k, v, mask, scale=0.3) is None


def test_only_the_named_regions_change():
    def function(x, kernel):
        return {"y": linear(x, kernel) + 1, "x": x}

    kernels = {"moejax.linear": lambda x, kernel, bias, activation: jnp.zeros((3, 2))}
    x, kernel = draw(3, 5), draw(5, 2)
    found = jax.jit(substitute(function, kernels))(x, kernel)
    np.testing.assert_array_equal(found["y"], np.ones((3, 2)))
    np.testing.assert_array_equal(found["x"], x)
    declined = substitute(function, {"moejax.linear": lambda *given, activation: None})(x, kernel)
    np.testing.assert_allclose(declined["y"], x @ kernel + 1, atol=1e-5)
