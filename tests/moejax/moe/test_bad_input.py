"""A whole layer on values and masks at the edge: defined results, no NaN out of finite input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe.config import RoutingConfig
from moejax.moe.layer import LossWeights, MoEConfig, MoELayer
from moejax.moe.routing import route
from moejax.moe.usage import aux_loss

D = 6
CONFIG = MoEConfig(
    d_model=D,
    d_ff=7,
    routing=RoutingConfig(num_experts=5, top_k=3, free_experts=("copy", "constant")),
    num_shared_experts=1,
    shared_gate=True,
    losses=LossWeights(load_balance=1.0, sequence_balance=1.0, z=1.0, entropy=1.0),
    dispatch="dense",
    tau=0.5,
)


@jax.jit
def run(x, mask=None):
    """(output, auxiliary loss, gradients of their sum) in training."""
    layer = MoELayer(CONFIG)
    variables = layer.init(jax.random.key(0), x)

    def total(variables, x):
        y, sown = layer.apply(variables, x, mask, train=True, mutable=["moe"])
        loss = aux_loss(sown["moe"])
        return jnp.sum(y.astype(jnp.float32)) + loss, (y, loss)

    gradients, (y, loss) = jax.grad(total, argnums=(0, 1), has_aux=True)(variables, x)
    return y, loss, gradients


def test_float16_near_its_end_stays_finite():
    signs = np.random.default_rng(0).choice([-6e4, 6e4], size=(1, 7, D))
    y, loss, _ = run(jnp.asarray(signs, jnp.float16))
    assert y.dtype == jnp.float16
    assert np.isfinite(np.asarray(y, np.float32)).all()
    assert np.isfinite(loss)


@pytest.mark.parametrize("capacity", [None, 0, 8])
def test_expert_choice_needs_a_capacity_that_its_tokens_fill(capacity):
    config = RoutingConfig(num_experts=3, strategy="expert_choice", allow_non_causal=True)
    with pytest.raises(ValueError, match=f"capacity is {capacity}"):
        route(jnp.zeros((7, 3)), config, capacity=capacity)
