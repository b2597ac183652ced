"""The MoE layer's dispatch on a GPU against float64 on the CPU: values and gradients.

Inputs are drawn afresh at every run. What the kernels leave unwritten is made visible by filling
the device's free memory with NaN before each case.
"""

import secrets
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.moe.config import RoutingConfig
from moejax.moe.dispatch import dispatch
from moejax.moe.routing import route

POISON_BYTES = 4 * 2**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a layer; `favour` is added to the logits of the last expert."""

    name: str
    tokens: int = 700
    width: int = 512
    hidden: int = 384
    experts: int = 16
    top_k: int = 4
    favour: float = 0.0


CASES = (
    Case(name="even"),
    Case(name="one_takes_all", top_k=1, favour=1e3),
    Case(name="many_take_none", experts=64, top_k=2, favour=8.0, tokens=200),
    Case(name="tails", width=328, hidden=200),
    Case(name="one_token", tokens=9, top_k=2, experts=8),
)


def errors(case: Case) -> dict[str, float]:
    """Relative Frobenius errors of the output and of the gradients."""
    rng = np.random.default_rng(secrets.randbits(64))
    x_TD, params, cotangent_TD, logits_TE = make_inputs(case, rng)
    routing = route(
        jnp.asarray(logits_TE, jnp.float32),
        RoutingConfig(num_experts=case.experts, top_k=case.top_k),
    )

    def run(x_TD, weight_Tk, params):
        return dispatch(x_TD, replace(routing, weight=weight_Tk), params, "grouped")

    @jax.jit
    def both(x_TD, weight_Tk, params, cotangent_TD):
        y_TD, pull = jax.vjp(run, x_TD, weight_Tk, params)
        return y_TD, *pull(cotangent_TD)

    arguments = x_TD, routing.weight, params, cotangent_TD
    compiled = both.lower(*arguments).compile()
    poison()
    y_TD, grad_x_TD, grad_weight_Tk, grad_params = compiled(*arguments)
    found = {"output": y_TD, "tokens": grad_x_TD, "weights": grad_weight_Tk, **grad_params}
    expected = reference(x_TD, routing.index, routing.weight, params, cotangent_TD)
    return {name: relative(found[name], expected[name]) for name in expected}


def make_inputs(case: Case, rng: np.random.Generator):
    """Tokens, experts' weights, cotangent and logits."""

    def draw(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) * scale, jnp.bfloat16)

    stack, width, hidden = case.experts, case.width, case.hidden
    params = {
        "gate": draw(stack, width, hidden, scale=width**-0.5),
        "up": draw(stack, width, hidden, scale=width**-0.5),
        "down": draw(stack, hidden, width, scale=hidden**-0.5),
    }
    logits_TE = rng.standard_normal((case.tokens, stack))
    logits_TE[:, -1] += case.favour
    return draw(case.tokens, width), params, draw(case.tokens, width), logits_TE


def reference(x_TD, index_Tk, weight_Tk, params, cotangent_TD) -> dict[str, np.ndarray]:
    """The same in float64, an expert at a time."""
    x_TD, weight_Tk, cotangent_TD = (
        np.asarray(leaf, np.float64) for leaf in (x_TD, weight_Tk, cotangent_TD)
    )
    params = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    y_TD, grad_x_TD = np.zeros_like(x_TD), np.zeros_like(x_TD)
    grads: dict[str, Any] = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    grad_weight_Tk = np.zeros_like(weight_Tk)
    for expert in range(len(params["down"])):
        token, slot = np.nonzero(np.asarray(index_Tk) == expert)
        x, grad = x_TD[token], cotangent_TD[token]
        weight = weight_Tk[token, slot][:, None]
        gate, up = x @ params["gate"][expert], x @ params["up"][expert]
        sigmoid = 1.0 / (1.0 + np.exp(-gate))
        hidden = gate * sigmoid * up
        out = hidden @ params["down"][expert]
        grad_hidden = weight * grad @ params["down"][expert].T
        grad_gate = grad_hidden * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        grad_up = grad_hidden * gate * sigmoid
        np.add.at(y_TD, token, weight * out)
        back = grad_gate @ params["gate"][expert].T + grad_up @ params["up"][expert].T
        np.add.at(grad_x_TD, token, back)
        grad_weight_Tk[token, slot] = np.sum(grad * out, axis=1)
        grads["gate"][expert] = x.T @ grad_gate
        grads["up"][expert] = x.T @ grad_up
        grads["down"][expert] = hidden.T @ (weight * grad)
    return {"output": y_TD, "tokens": grad_x_TD, "weights": grad_weight_Tk, **grads}


def relative(found: Any, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected."""
    difference = np.asarray(found, np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected))


def poison() -> None:
    """Leave NaN in the memory that the next program gets."""
    block = jnp.full((POISON_BYTES // 4,), jnp.nan, jnp.float32)
    block.block_until_ready()
    block.delete()
