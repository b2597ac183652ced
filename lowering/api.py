"""Lower a JAX function: trace, rules, passes."""

from collections.abc import Callable, Mapping
from typing import Any

from lowering.builder import Builder, logical_dtype
from lowering.ir import Arch, Policy, Program
from lowering.passes import run_passes
from lowering.rules import lower_graph
from lowering.trace import Graph, Known, trace


def lower(
    function: Callable[..., Any],
    params: Any,
    inputs: Mapping[str, Any],
    *,
    name: str = "program",
    policy: Policy = "bfloat16",
    arch: Arch = "wormhole_b0",
) -> Program:
    """The ttnn program of `function(params, *inputs.values())`.

    `params`: a pytree of arrays, stored in the program. `inputs`: name -> example array or
    jax.ShapeDtypeStruct; only shape and dtype count. Raises LoweringError for what the device
    cannot do, naming the operation, its Flax module and the source line.
    """
    program = lower_to_ops(trace(function, params, inputs), name=name, policy=policy, arch=arch)
    return run_passes(program)


def lower_to_ops(graph: Graph, *, name: str, policy: Policy, arch: Arch) -> Program:
    """The program as the rules emit it: float32 and integers, no pass run yet."""
    builder = Builder(policy)
    env = {
        id(tensor): builder.input(label, tensor.shape, logical_dtype(tensor.dtype))
        for label, tensor in graph.inputs.items()
    }
    results = lower_graph(builder, graph, env)
    names = [
        builder.weight(r.numpy(), r.name or "constant").name if isinstance(r, Known) else r.name
        for r in results
    ]
    return builder.finish(Program(name, (), (), (), (), policy, arch), names)
