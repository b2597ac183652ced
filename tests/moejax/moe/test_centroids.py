"""Routing by the distance to centroids."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe.centroids import centroid_distance, centroid_logits
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer

CONFIG = MoEConfig(
    d_model=16,
    d_ff=8,
    routing=RoutingConfig(num_experts=5, top_k=2, score="identity"),
    capacity=None,
    centroids="farthest",
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_distances_are_those_of_float64(dtype):
    rng = np.random.default_rng(0)
    x, c = (jnp.asarray(rng.normal(size=(n, 384)), dtype) for n in (7, 32))
    exact = np.linalg.norm(np.asarray(x, np.float64)[:, None] - np.asarray(c, np.float64), axis=-1)
    found = centroid_distance(x, c)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_a_token_on_its_centroid_has_a_finite_gradient():
    c = jnp.eye(3, 4)
    grads = jax.grad(lambda x, c: centroid_logits(x, c, "nearest").sum(), argnums=(0, 1))(c, c)
    assert np.isfinite(grads[0]).all()
    np.testing.assert_array_equal(grads[1], 0)


@pytest.mark.parametrize("dispatch", ["dense", "gather", "blockpad", "indexed"])
def test_dispatches_serve_them(dispatch):
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    layer = MoELayer(replace(CONFIG, dispatch=dispatch))
    variables = layer.init(jax.random.key(0), x)
    assert "router_kernel" not in variables["params"]
    centroid_ED = variables["router_state"]["centroids"]
    assert centroid_ED.shape == (5, 16)
    distance = jnp.linalg.norm(x[:, :, None] - centroid_ED[None, None], axis=-1)
    best, index = jax.lax.top_k(distance, 2)
    weight_E = jnp.sum(jax.nn.softmax(best)[..., None] * jax.nn.one_hot(index, 5), axis=-2)
    p = variables["params"]["experts"]
    hidden = jax.nn.silu(jnp.einsum("bsd,edf->bsef", x, p["gate"]))
    hidden = hidden * jnp.einsum("bsd,edf->bsef", x, p["up"])
    expected = jnp.einsum("bsef,efd,bse->bsd", hidden, p["down"], weight_E)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"centroids": "middle"}, "centroids is 'middle'"),
        ({"routing": RoutingConfig(num_experts=4, use_bias=True)}, "needs a kernel"),
        ({"routing": RoutingConfig(num_experts=4, input_jitter=0.1)}, "needs a kernel"),
        (
            {"routing": RoutingConfig(num_experts=4, strategy="soft", allow_non_causal=True)},
            "needs a kernel",
        ),
    ],
)
def test_what_needs_a_kernel_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)
