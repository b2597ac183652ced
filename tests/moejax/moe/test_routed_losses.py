"""Losses of routed layers, and balancing by the bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe import losses
from moejax.moe.balancing import update_router_state
from moejax.moe.config import RoutingConfig
from moejax.moe.routing import route

LOSSES = {
    "balance": losses.routed_load_balance,
    "sequence": lambda routing: losses.routed_load_balance(routing, num_groups=2),
    "mse": losses.mean_probability_error,
    "z": losses.z_loss,
    "entropy": losses.router_entropy,
}


def routing_of(logits, mask=None, **fields):
    config = RoutingConfig(num_experts=logits.shape[-1], **fields)
    return route(logits, config, mask_T=mask)


@pytest.mark.parametrize("name", LOSSES)
def test_padding_has_no_say(name, getkey):
    logits = jax.random.normal(getkey(), (2, 6, 4))
    alone = LOSSES[name](routing_of(logits.reshape(12, 4)))
    padded = jnp.concatenate([logits, 100 * jnp.ones((2, 3, 4))], axis=1).reshape(18, 4)
    mask = jnp.tile(jnp.arange(9) < 6, 2)
    np.testing.assert_allclose(LOSSES[name](routing_of(padded, mask)), alone, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_tokens", [0, 4])
def test_no_token_is_no_loss(name, num_tokens):
    logits = jnp.ones((num_tokens, 4))
    value, gradient = jax.value_and_grad(
        lambda x: LOSSES[name](routing_of(x, jnp.zeros(num_tokens, bool)))
    )(logits)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_balance_extremes(score):
    even = 20 * jnp.tile(jnp.eye(4), (2, 1))
    config = {"top_k": 1, "score": score}
    np.testing.assert_allclose(losses.routed_load_balance(routing_of(even, **config)), 1, rtol=1e-3)
    odd = routing_of(jnp.tile(jnp.asarray([[20.0, -20, -20, -20]]), (8, 1)), **config)
    np.testing.assert_allclose(losses.routed_load_balance(odd), 4, rtol=1e-3)
    doubled = losses.routed_load_balance(odd, balanced_value=2)
    np.testing.assert_allclose(doubled, 8, rtol=1e-3)


def test_values_against_their_formulas(getkey):
    logits = np.asarray(jax.random.normal(getkey(), (5, 4)))
    routing = routing_of(jnp.asarray(logits))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -(probs * np.log(probs)).sum(-1).mean() / np.log(4)
    np.testing.assert_allclose(losses.router_entropy(routing), entropy, rtol=1e-5)
    error = np.square(probs.mean(0) - 0.25).mean()
    np.testing.assert_allclose(losses.mean_probability_error(routing), error, rtol=1e-4)
    z = np.square(np.log(np.exp(logits).sum(-1))).mean()
    np.testing.assert_allclose(losses.z_loss(routing), z, rtol=1e-5)


def test_descent_evens_the_load(getkey):
    logits = jax.random.normal(getkey(), (64, 4)) + jnp.asarray([[2.0, 0, 0, 0]])

    def loss(shift):
        return losses.routed_load_balance(routing_of(logits + shift[None]))

    assert jax.grad(loss)(jnp.zeros(4))[0] > 0


def test_bias_moves_towards_the_idle():
    state = {"a": {"bias": jnp.zeros(3)}, "b": {"bias": jnp.ones((2, 3))}}
    counts = {"a": {"bias": jnp.asarray([6, 2, 4])}, "b": {"bias": jnp.zeros((2, 3), jnp.int32)}}
    moved = update_router_state(state, counts, rate=0.5)
    np.testing.assert_allclose(moved["a"]["bias"], [-0.5, 0.5, 0])
    np.testing.assert_allclose(moved["b"]["bias"], np.ones((2, 3)))
