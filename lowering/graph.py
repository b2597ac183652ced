"""A traced function as a flat graph: nodes, what is known, what is only on the device."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from lowering.ir import Source
from moejax.regions import RegionCall


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value that exists only on the device. Compared by identity."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True, eq=False)
class Known:
    """A value known at lowering time. `name` is the parameter that it comes from, if just one."""

    array: Any
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def numpy(self) -> np.ndarray:
        return np.asarray(self.array)


Operand = Tensor | Known


@dataclass(frozen=True, eq=False)
class Node:
    """One primitive equation, or one verified region with `body` (its own nodes and results)."""

    primitive: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Tensor, ...]
    params: Mapping[str, Any]
    source: Source
    region: RegionCall | None = None
    body: "Graph | None" = None
    compute: Callable[[Sequence[Any]], Sequence[Any]] | None = None  # JAX itself; regions use body


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in order, and the operands that are the results.

    `state`: what comes from the run before; `kept`: what of the same name goes to the next one.
    """

    nodes: tuple[Node, ...]
    results: tuple[Operand, ...]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Operand] = field(default_factory=dict)

    def readers(self) -> dict[int, list[Node | None]]:
        """id(tensor) -> the nodes that read it; None for a reader outside."""
        found: dict[int, list[Node | None]] = {}
        for node in self.nodes:
            for operand in node.inputs:
                found.setdefault(id(operand), []).append(node)
        for operand in (*self.results, *self.kept.values()):
            found.setdefault(id(operand), []).append(None)
        return found


def live(nodes: Sequence[Node], results: Iterable[Operand]) -> tuple[Node, ...]:
    """The nodes that the results depend on, in order."""
    needed = {id(result) for result in results}
    kept = []
    for node in reversed(nodes):
        if any(id(output) in needed for output in node.outputs):
            needed |= {id(operand) for operand in node.inputs}
            kept.append(node)
    return tuple(reversed(kept))


def evaluate(
    graph: Graph, inputs: Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> dict[int, np.ndarray]:
    """What JAX computes for every tensor of a traced graph: id(tensor) -> array.

    Independent of rules and passes, so it is the golden value of each step of a program.
    """
    given = {**inputs, **(state or {})}
    env: dict[int, Any] = {
        id(tensor): jax.numpy.asarray(given[name], tensor.dtype)
        for name, tensor in (*graph.inputs.items(), *graph.state.items())
    }
    with jax.default_matmul_precision("highest"):
        _evaluate_nodes(graph, env)
    return {key: np.asarray(array) for key, array in env.items()}


def _evaluate_nodes(graph: Graph, env: dict[int, Any]) -> None:
    def read(operand: Operand) -> Any:
        return operand.array if isinstance(operand, Known) else env[id(operand)]

    for node in graph.nodes:
        if node.body is not None:
            _evaluate_nodes(node.body, env)
            results = [read(result) for result in node.body.results]
        else:
            assert node.compute is not None
            results = node.compute([read(operand) for operand in node.inputs])
        env |= {id(tensor): array for tensor, array in zip(node.outputs, results, strict=True)}
