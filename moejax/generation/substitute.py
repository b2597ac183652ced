"""Running a traced function with some of its regions computed in another way."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

from moejax.regions import find_call

# Takes what the region takes; None where it doesn't serve these shapes.
Kernel = Callable[..., Any]


def substitute(function: Callable[..., Any], kernels: Mapping[str, Kernel]) -> Callable[..., Any]:
    """`function` of pytrees, with the regions named in `kernels` computed by those.

    Regions inside loops, branches or other regions stay as they are.
    """

    def run(*args):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluate(closed, jax.tree.leaves(args), kernels)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


def _evaluate(closed: Any, leaves: list[Any], kernels: Mapping[str, Kernel]) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, leaves, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = _by_kernel(eqn, operands, kernels)
        if results is None:
            results = _bind(eqn, operands)
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(eqn: Any, operands: list[Any]) -> list[Any]:
    """The equation as it is."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # a pair until 0.11
    results = eqn.primitive.bind(*functions, *operands, **params)
    return results if eqn.primitive.multiple_results else [results]


def _by_kernel(eqn: Any, operands: list[Any], kernels: Mapping[str, Kernel]) -> list[Any] | None:
    call = find_call(eqn.params["name"]) if eqn.primitive.name in ("jit", "pjit") else None
    kernel = kernels.get(call.region.name) if call else None
    if call is None or kernel is None:
        return None
    results = kernel(*call.arguments(operands), **call.attrs)
    return None if results is None else jax.tree.leaves(results)
