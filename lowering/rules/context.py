"""What every rule works with: the registry, the emitting context, the walk over a traced graph."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowering.builder import Builder, NoDeviceDTypeError, logical_dtype
from lowering.errors import LoweringError, describe
from lowering.graph import Graph, Known, Node, Tensor
from lowering.ir import DType, Policy, Value
from lowering.rules.advice import advice
from lowering.trace import subgraph

Operand = Value | Known
Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
DECLINED = object()


def lowers(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for primitives or regions; ValueError when one already has a rule."""

    def register(rule: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"{name!r} already has the rule {RULES[name].__name__}")
            RULES[name] = rule
        return rule

    return register


class Context:
    """Emits the ops of one node."""

    def __init__(self, builder: Builder, node: Node):
        self._builder = builder
        self.node = node
        self.source = node.source

    @property
    def policy(self) -> Policy:
        """The dtype policy that the program is built for; most rules need not know it."""
        return self._builder.policy

    @property
    def writes_state(self) -> bool:
        """Whether the node may overwrite the state that it reads."""
        return id(self.node) in self._builder.in_place

    def note(self, text: str) -> None:
        """What the reader of the generated code should know about the ops that follow."""
        self.source = dataclasses.replace(self.source, note=text)

    def keep_float32(self) -> None:
        """The ops that follow work in float32 under every policy."""
        self.source = dataclasses.replace(self.source, float32=True)

    def value(self, operand: Operand) -> Value:
        """The operand on the device: Known numbers become a weight."""
        if isinstance(operand, Known):
            return self._builder.weight(operand.numpy(), self._weight_name(operand))
        return operand

    def weight(self, array: np.ndarray, name: str, dtype: DType) -> Value:
        """A weight that is stored in one dtype under every policy."""
        return self._builder.weight(array, name, dtype)

    def constant(self, array: np.ndarray, like: Operand | None = None) -> Known:
        """Numbers computed by a rule; `like`: the operand whose name they keep."""
        return Known(array, like.name if isinstance(like, Known) else "")

    def emit(self, name: str, *operands: Operand, **attrs: Any) -> Value:
        """One op with one result."""
        (value,) = self.emit_many(name, *operands, **attrs)
        return value

    def emit_many(self, name: str, *operands: Operand, **attrs: Any) -> tuple[Value, ...]:
        """One op with any number of results."""
        return self._builder.emit(name, [self.value(o) for o in operands], self.source, **attrs)

    def reshape(self, x: Operand, shape: Sequence[int]) -> Operand:
        """`x` in another shape, without an op where none is needed."""
        shape = tuple(int(size) for size in shape)
        if isinstance(x, Known):
            return Known(np.reshape(x.numpy(), shape), x.name)
        return x if x.shape == shape else self.emit("reshape", x, shape=shape)

    def permute(self, x: Operand, dims: Sequence[int]) -> Operand:
        """`x` with its axes in another order, without an op where none is needed."""
        dims = tuple(int(axis) for axis in dims)
        if isinstance(x, Known):
            return Known(np.transpose(x.numpy(), dims), x.name)
        return x if dims == tuple(range(len(dims))) else self.emit("permute", x, dims=dims)

    def convert(self, x: Operand, dtype: str) -> Operand:
        """`x` in another logical dtype, without an op where none is needed."""
        if isinstance(x, Known):
            return Known(x.numpy().astype(dtype), x.name)
        return x if x.dtype == dtype else self.emit("typecast", x, dtype=dtype)

    def before_typecast(self, x: Operand) -> Operand:
        """`x` as it was before a conversion among integers; `x` itself where there was none."""
        op = self._builder.producers.get(x.name) if isinstance(x, Value) else None
        if op is None or op.name != "typecast":
            return x
        source = self._builder.values[op.inputs[0]]
        return source if source.dtype in ("int32", "uint32") else x

    def is_head_of(self, x: Operand, joined: Operand) -> bool:
        """Whether `joined` is `x` with more features behind."""
        op = self._builder.producers.get(joined.name) if isinstance(joined, Value) else None
        last = len(joined.shape) - 1
        if op is None or op.name != "concat" or op.attrs["dim"] != last:
            return False
        return isinstance(x, Value) and op.inputs[0] == x.name

    def inline(self, function: Callable[..., Any], *operands: Operand) -> list[Operand]:
        """The results of a JAX function on operands, lowered by the rules of its primitives."""
        stand_ins = [_stand_in(operand) for operand in operands]
        graph = subgraph(function, stand_ins, self.source)
        env = {id(stand_in): operand for stand_in, operand in zip(stand_ins, operands, strict=True)}
        return lower_graph(self._builder, graph, env)

    def fail(self, why: str) -> LoweringError:
        """The error of a rule that cannot serve these operands."""
        return LoweringError(
            f"{describe(self.node.primitive, self.node.inputs, self.source)}: {why}"
        )

    def _weight_name(self, operand: Known) -> str:
        if operand.name:
            return operand.name
        module = ".".join(part for part in self.source.module.split("/")[1:] if part.isidentifier())
        return f"{module}.constant" if module else "constant"


def _stand_in(operand: Operand) -> Tensor | Known:
    if isinstance(operand, Known):
        return operand
    return Tensor(operand.shape, np.dtype(operand.dtype))


def is_bool(operand: Any) -> bool:
    return operand.dtype.kind == "b"


def is_integer(operand: Any) -> bool:
    return operand.dtype.kind in "iu"


def is_floating(operand: Any) -> bool:
    """Whether a traced operand holds floats (half precision is of kind V in numpy)."""
    return not is_bool(operand) and not is_integer(operand)


def uniform(operand: Operand) -> float | int | None:
    """The one number that a known operand repeats, or None."""
    if not isinstance(operand, Known) or math.prod(operand.shape) == 0:
        return None
    array = operand.numpy()
    first = array.flat[0]
    if array.size > 1 and not np.array_equal(array, np.broadcast_to(first, array.shape)):
        return None
    return first.item() if array.dtype.kind in "iub" else float(first)


def expand(ctx: Context, x: Operand, shape) -> Operand:
    """`x` repeated along its unit axes."""
    shape = tuple(int(size) for size in shape)
    return x if tuple(x.shape) == shape else ctx.emit("expand", x, shape=shape)


def lower_graph(builder: Builder, graph: Graph, env: dict[int, Operand]) -> list[Operand]:
    """Lower every node; `env` maps id(Tensor) to its operand. Returns the results' operands."""

    def read(operand: Tensor | Known) -> Operand:
        return (
            operand if isinstance(operand, Known) and id(operand) not in env else env[id(operand)]
        )

    for node in graph.nodes:
        results = _lower_node(builder, node, [read(operand) for operand in node.inputs])
        for tensor, result in zip(node.outputs, results, strict=True):
            env[id(tensor)] = result
            if isinstance(result, Value):
                builder.origins.setdefault(result.name, tensor)
    return [read(result) for result in graph.results]


def _lower_node(builder: Builder, node: Node, operands: list[Operand]) -> list[Operand]:
    known = [operand for operand in operands if isinstance(operand, Known)]
    if node.compute is not None and len(known) == len(operands):
        # a rule found out more than tracing could
        return [Known(array) for array in node.compute([operand.array for operand in known])]
    rule = RULES.get(node.primitive)
    if rule is not None:
        arguments = node.region.arguments(operands) if node.region else operands
        ctx = Context(builder, node)
        try:
            results = rule(ctx, *arguments, **node.params)
        except NoDeviceDTypeError as error:
            raise ctx.fail(str(error)) from error
        if results is not DECLINED:
            results = list(results) if isinstance(results, tuple | list) else [results]
            _check(node, results)
            return results
    if node.body is not None:
        env = {id(i): operand for i, operand in zip(node.inputs, operands, strict=True)}
        return lower_graph(builder, node.body, env)
    raise LoweringError(
        f"{describe(node.primitive, node.inputs, node.source)}: no rule for this primitive; "
        + advice(node.primitive, RULES)
    )


def _check(node: Node, results: Sequence[Operand]) -> None:
    """A rule's results must have the shapes and kinds of dtype that JAX says."""
    for tensor, result in zip(node.outputs, results, strict=True):
        wanted = logical_dtype(tensor.dtype)
        found = result.dtype if isinstance(result, Value) else logical_dtype(result.dtype)
        if tuple(result.shape) != tensor.shape or found != wanted:
            raise LoweringError(
                f"the rule for {node.primitive} gave {found}{list(result.shape)}, JAX says "
                f"{tensor.dtype}{list(tensor.shape)} ({node.source}); this is a bug in the rule"
            )
