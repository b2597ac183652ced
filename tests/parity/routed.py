"""A routed layer by parts. A router's choice may turn on a rounding error, so its logits, its
choices, and the experts under JAX's own routing are compared apart; the whole comes after that.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lowering import lower
from lowering.backends import reference
from lowering.ir import Policy
from moejax.moe.assignment import Routing
from moejax.moe.dispatch import dispatch
from moejax.moe.layer import MoELayer

LOGIT_ERROR = 0.01  # of the largest logit: one product of operands in bfloat16
# of the largest distance, most of which is the squares, summed in float32
DISTANCE_ERROR = 5e-4


@dataclass(frozen=True)
class Choices:
    """Experts [T, k] by number, as the program and as JAX chose them; `sure` [T]: JAX's scores are
    further apart than the errors of two logits.
    """

    found: np.ndarray
    expected: np.ndarray
    sure: np.ndarray


def compare_choices(layer: MoELayer, variables: Any, x: np.ndarray, policy: Policy) -> Choices:
    """The k largest logits with the device's rounding; AssertionError where logits are off."""
    k = layer.config.routing.top_k

    def choose(variables, x):
        routing = layer.apply(variables, x.reshape(-1, x.shape[-1]), method="route")
        return routing.logits, routing.index

    expected, experts = map(np.asarray, choose(variables, x))
    program = lower(choose, variables, {"x": x}, policy=policy)
    logits, found = reference.run(program, {"x": x}, "device")
    share = LOGIT_ERROR if layer.config.centroids is None else DISTANCE_ERROR
    error = share * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=error)
    ordered = np.sort(expected, axis=1)[:, ::-1]
    sure = ordered[:, k - 1] - ordered[:, k] > 2 * error
    return Choices(np.sort(found, axis=1), np.sort(experts, axis=1), sure)


def experts_alone(layer: MoELayer, variables: Any, x: np.ndarray) -> tuple[Any, Any, dict]:
    """(function, params, inputs) of a layer's experts; JAX's routing is among the inputs."""
    x_TD = x.reshape(-1, x.shape[-1])
    routing = layer.apply(variables, x_TD, method="route")

    def function(params, x, index, weight):
        given = replace(routing, index=index, weight=weight)
        return dispatch(x, given, params, layer.config.dispatch)

    routed = {"index": np.asarray(routing.index), "weight": np.asarray(routing.weight)}
    return function, variables["params"]["experts"], {"x": x_TD, **routed}


@contextmanager
def routed_by(choices: Iterator[tuple[jax.Array, jax.Array]]) -> Iterator[None]:
    """Every MoE layer called inside takes the next (index, weight) in place of its own routing."""

    def inject(run, args, kwargs, context):
        if not (isinstance(context.module, MoELayer) and context.method_name == "route"):
            return run(*args, **kwargs)
        index, weight = next(choices)
        config = context.module.config.routing
        nothing = jnp.zeros((index.shape[0], config.num_outputs))
        everything = jnp.ones(index.shape, bool)
        valid = everything[:, 0]
        return Routing(index, weight, everything, nothing, nothing, valid, config.num_experts)

    with nn.intercept_methods(inject):
        yield
