"""Drawing tokens: the filtered distribution, ties, and what never occurs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.forecasting.chronos.sampling import Sampling, draw, forbid, warp

ROWS = 4000


def frequencies(logits_V, temperature, top_k, top_p, seed=0):
    keys_R = jax.random.split(jax.random.key(seed), ROWS)
    uniform_R = jax.random.uniform(jax.random.key(seed + 1), ROWS)
    logits_RV = forbid(jnp.broadcast_to(logits_V, (ROWS, len(logits_V))), 1)
    ids_R = draw(logits_RV, uniform_R, keys_R, temperature, top_k, top_p)
    return np.bincount(np.asarray(ids_R), minlength=len(logits_V)) / ROWS


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 5, None), (0.7, 0, 0.9), (1.3, 8, 0.5), (1.0, 0, None)],
)
def test_tokens_follow_the_filtered_distribution(temperature, top_k, top_p):
    logits_V = jax.random.normal(jax.random.key(5), 12) * 2
    expected_V = jax.nn.softmax(warp(forbid(logits_V[None], 1), temperature, top_k, top_p)[0])
    found_V = frequencies(logits_V, temperature, top_k, top_p)
    assert np.abs(found_V - expected_V).max() < 5 * 0.5 / ROWS**0.5
    assert (found_V[expected_V == 0] == 0).all()
    assert found_V[1] == 0


def test_equals_of_the_last_kept_token_are_kept():
    logits_V = jnp.array([3.0, 9.0, 2.0, 2.0, 2.0, 0.0])
    found_V = frequencies(logits_V, 1.0, 2, None)
    expected_V = np.exp([3.0, -np.inf, 2.0, 2.0, 2.0, -np.inf])
    assert np.abs(found_V - expected_V / expected_V.sum()).max() < 0.05


@pytest.mark.parametrize(
    "wrong", [{"num_samples": 0}, {"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**{"num_samples": 1} | wrong)
