"""Lower a JAX function: trace, rules, passes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowering.builder import Builder, logical_dtype
from lowering.graph import Graph, Known, Tensor, evaluate
from lowering.ir import Arch, Policy, Program
from lowering.passes import run_passes
from lowering.rules import Operand, lower_graph
from lowering.rules.state import add_state, keep_state
from lowering.trace import trace


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program beside the traced function that it came from."""

    program: Program
    graph: Graph
    origins: Mapping[str, Tensor]

    def golden(
        self, inputs: Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """What JAX computes for the program's values: name -> array, where the two correspond."""
        arrays = evaluate(self.graph, inputs, state)
        produced = [value.name for op in self.program.ops for value in op.outputs]
        return {
            name: arrays[id(self.origins[name])]
            for name in produced
            if name in self.origins and id(self.origins[name]) in arrays
        }


def lower(
    function: Callable[..., Any],
    params: Any,
    inputs: Mapping[str, Any],
    *,
    state: Any = None,
    name: str = "program",
    policy: Policy = "bfloat16",
    arch: Arch = "wormhole_b0",
) -> Program:
    """The ttnn program of `function(params, *inputs.values())`.

    `params`: a pytree of arrays, stored in the program. `inputs`: name -> example array or
    jax.ShapeDtypeStruct; only shape and dtype count. `state`: a pytree of such examples, the
    function's last argument, whose new values it returns beside the results; they stay on the
    device from run to run. Raises LoweringError for what the device cannot do, naming the
    operation, its Flax module and the source line.
    """
    graph = trace(function, params, inputs, state)
    return lower_graph_of(graph, name=name, policy=policy, arch=arch).program


def lower_graph_of(graph: Graph, *, name: str, policy: Policy, arch: Arch) -> Lowered:
    """The program of a traced function, every pass run."""
    builder = Builder(policy)
    env: dict[int, Operand] = {
        id(tensor): builder.input(label, tensor.shape, logical_dtype(tensor.dtype))
        for label, tensor in graph.inputs.items()
    }
    add_state(builder, graph, env)
    results = lower_graph(builder, graph, env)
    keep_state(builder, graph, env)
    names = [
        builder.weight(r.numpy(), r.name or "constant").name if isinstance(r, Known) else r.name
        for r in results
    ]
    program = builder.finish(Program(name, (), (), (), (), policy, arch), names)
    return Lowered(run_passes(program), graph, builder.origins)
