"""Products of bfloat16 with float32 by parts, and their gradients, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.kernels.split_dot import split_dot


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e12])
def test_as_exact_as_float32(scale):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 96)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(96, 8)) * scale, jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(40, 8)), jnp.float32)
    y, pull = jax.vjp(jax.jit(split_dot), x, kernel)
    grad_x, grad_kernel = pull(cotangent)
    wide = [np.asarray(leaf, np.float64) for leaf in (x, kernel, cotangent)]
    assert relative(y, wide[0] @ wide[1]) < 2e-7
    assert relative(grad_kernel, wide[0].T @ wide[2]) < 2e-7
    exact = wide[2] @ wide[1].T
    assert grad_x.dtype == jnp.bfloat16
    assert relative(grad_x, exact) < 1.05 * relative(exact.astype(jnp.bfloat16), exact)


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
