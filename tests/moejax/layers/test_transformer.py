"""Norms, gelu, swiglu, embedding, rope and attention against other definitions of the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.layers.attention import attention, causal_mask
from moejax.layers.embedding import embedding
from moejax.layers.gelu import gelu
from moejax.layers.mlp import swiglu
from moejax.layers.norm import layer_norm, rms_norm
from moejax.layers.rope import RopeConfig, quarter_turn, rope, rope_rows

RNG = np.random.default_rng(0)
X = RNG.normal(1, 2, (2, 5, 8)).astype(np.float32)
SCALE, BIAS = (RNG.normal(size=8).astype(np.float32) for _ in range(2))
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_norms_agree_with_flax(eps):
    root = nn.RMSNorm(epsilon=eps).apply({"params": {"scale": SCALE}}, X)
    np.testing.assert_allclose(rms_norm(X, SCALE, eps=eps), root, **CLOSE)
    params = {"scale": SCALE, "bias": BIAS}
    layer = nn.LayerNorm(epsilon=eps).apply({"params": params}, X)
    np.testing.assert_allclose(layer_norm(X, SCALE, BIAS, eps=eps), layer, **CLOSE)
    plain = nn.LayerNorm(epsilon=eps, use_bias=False, use_scale=False).apply({}, X)
    np.testing.assert_allclose(layer_norm(X, eps=eps), plain, **CLOSE)
    np.testing.assert_allclose(rms_norm(X, eps=eps) * SCALE[None, None], root, **CLOSE)


def test_half_precision_goes_through_float32():
    half = jnp.asarray(X * 200, jnp.float16)
    for result in (rms_norm(half, eps=1e-6), layer_norm(half, eps=1e-6)):
        assert result.dtype == jnp.float16
        assert np.isfinite(result).all()


@pytest.mark.parametrize("form", ["exact", "tanh"])
def test_gelu(form):
    expected = jax.nn.gelu(X, approximate=form == "tanh")
    np.testing.assert_allclose(gelu(X, form=form), expected, **CLOSE)
    np.testing.assert_allclose(gelu(X), jax.nn.gelu(X, approximate=False), **CLOSE)


def test_gelu_of_an_unknown_form():
    with pytest.raises(ValueError, match="form is 'quick'; choose 'exact' or 'tanh'"):
        gelu(X, form="quick")


def test_swiglu():
    gate, up, down = (RNG.normal(size=s).astype(np.float32) for s in ((8, 6), (8, 6), (6, 8)))
    hidden = X @ gate / (1 + np.exp(-(X @ gate))) * (X @ up)
    np.testing.assert_allclose(swiglu(X, gate, up, down), hidden @ down, rtol=1e-4, atol=1e-4)


def test_embedding():
    ids = RNG.integers(0, 5, (3, 4))
    np.testing.assert_array_equal(embedding(ids, X[0]), X[0][ids])


class TestRope:
    @pytest.mark.parametrize("interleaved", [False, True])
    def test_products_depend_on_the_distance_alone(self, interleaved):
        q, k = (RNG.normal(size=8).astype(np.float32) for _ in range(2))
        options = {"interleaved": interleaved}

        def product(i, j):
            tables = rope_rows(RopeConfig(**options), 8, np.array([i, j]))
            turned = rope(np.stack([q, k])[None], *tables, **options)
            return turned[0, 0] @ turned[0, 1]

        np.testing.assert_allclose(product(3, 1), product(12, 10), rtol=1e-4, atol=1e-5)
        assert abs(product(3, 1) - product(3, 2)) > 1e-3

    def test_both_pairings_turn_the_same_pairs(self):
        order = np.concatenate([np.arange(0, 8, 2), np.arange(1, 8, 2)])
        positions = np.arange(5)
        halves = rope(X[..., order], *rope_rows(RopeConfig(), 8, positions))
        pairs = rope(X, *rope_rows(RopeConfig(interleaved=True), 8, positions), interleaved=True)
        np.testing.assert_allclose(halves, pairs[..., order], **CLOSE)

    def test_turns_by_the_angle_and_passes_the_rest_through(self):
        x = np.zeros((1, 1, 6), np.float32)
        x[..., 0], x[..., 4:] = 1, 7
        turned = rope(x, *rope_rows(RopeConfig(), 2, np.array([0.5])))
        np.testing.assert_allclose(turned[0, 0, :2], [np.cos(0.5), np.sin(0.5)], rtol=1e-6)
        np.testing.assert_array_equal(turned[0, 0, 2:], x[0, 0, 2:])

    def test_four_quarter_turns_are_none(self):
        for interleaved in (False, True):
            x = X
            for _ in range(4):
                x = quarter_turn(x, interleaved=interleaved)
            np.testing.assert_array_equal(x, X)

    def test_features_come_in_pairs(self):
        with pytest.raises(ValueError, match="width is 7; rotated features come in pairs"):
            rope_rows(RopeConfig(), 7, np.arange(3))


class TestAttention:
    Q, K, V = (
        RNG.normal(size=(2, n, s, 16)).astype(np.float32) for n, s in ((4, 5), (2, 7), (2, 7))
    )
    MASK = RNG.integers(0, 2, (2, 1, 5, 7)).astype(bool) | (np.arange(7) == 0)
    BIAS = RNG.normal(size=(1, 4, 5, 7)).astype(np.float32)

    @pytest.mark.parametrize("mask", [None, MASK])
    @pytest.mark.parametrize("bias", [None, BIAS])
    def test_agrees_with_jax(self, mask, bias):
        found = attention(self.Q, self.K, self.V, mask, bias, scale=0.3)
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (self.Q, self.K, self.V))
        expected = jax.nn.dot_product_attention(q, k, v, bias, mask, scale=0.3)
        np.testing.assert_allclose(found, jnp.swapaxes(expected, 1, 2), **CLOSE)

    def test_causal(self):
        k, v = self.K[:, :, :5], self.V[:, :, :5]
        found = attention(self.Q, k, v, scale=0.25, causal=True)
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (self.Q, k, v))
        expected = jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=0.25)
        np.testing.assert_allclose(found, jnp.swapaxes(expected, 1, 2), **CLOSE)

    def test_causal_with_a_past_sees_all_of_it(self):
        whole = attention(self.Q, self.K, self.V, scale=0.25, causal=True)
        last = attention(self.Q[:, :, -1:], self.K, self.V, scale=0.25, causal=True)
        np.testing.assert_allclose(last, whole[:, :, -1:], **CLOSE)
        np.testing.assert_array_equal(causal_mask(2, 4)[0, 0], np.tri(2, 4, 2, dtype=bool))

    def test_a_row_without_keys_is_uniform(self):
        nothing = np.zeros((1, 1, 1, 7), bool)
        found = attention(self.Q, self.K, self.V, nothing, scale=1.0)
        expected = np.repeat(self.V.mean(2, keepdims=True), 2, 1)
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), **CLOSE)

    def test_heads_must_share_evenly(self):
        with pytest.raises(ValueError, match="4 query heads cannot share 3 key heads evenly"):
            attention(self.Q, *(np.zeros((2, 3, 7, 16), np.float32),) * 2, scale=1.0)
