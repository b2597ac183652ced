"""Routed layers by parts: logits, choices where JAX is sure, experts under JAX's routing."""

import jax
import numpy as np
import pytest
from routed import compare_choices, experts_alone

from lowering import parity
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer

TOKENS = 48


def made(dispatch, tokens=TOKENS):
    """A layer with a decided router, its variables and an input."""
    routing = RoutingConfig(num_experts=8, top_k=2)
    layer = MoELayer(MoEConfig(d_model=48, d_ff=40, routing=routing, dispatch=dispatch))
    x = np.random.default_rng(2).standard_normal((tokens, 1, 48)).astype(np.float32)
    return layer, layer.init(jax.random.key(1), x), x


@pytest.mark.parametrize("policy", parity.POLICIES)
def test_choices(policy):
    choices = compare_choices(*made("dense"), policy)
    assert TOKENS / 2 < choices.sure.sum() < TOKENS
    np.testing.assert_array_equal(choices.found[choices.sure], choices.expected[choices.sure])


@pytest.mark.parametrize(("dispatch", "tokens"), [("dense", 24), ("indexed", 1), ("indexed", 4)])
def test_experts_under_the_routing_of_jax(dispatch, tokens):
    parity.assert_parity(*experts_alone(*made(dispatch, tokens)))
