"""Reshapes move behind elementwise ops, towards the reshape that undoes them."""

from lowering.ir import Op, Program, Value
from lowering.ops import ELEMENTWISE
from lowering.passes.rewrite import Rewrite


def sink_reshapes(program: Program) -> Program:
    """f(reshape(x)) -> reshape(f(x)) where every tensor operand was reshaped from the same shape.

    A reduction without kept axes is followed by such a reshape, and its use by the inverse one;
    where the two meet, both are gone.
    """
    walk = Rewrite(program)
    sources: dict[str, Value] = {}  # new value made by a reshape -> what was reshaped
    for op in program.ops:
        if op.name == "reshape":
            _reshape(walk, op, sources)
        elif op.name not in ELEMENTWISE or not _sink(walk, op, sources):
            walk.copy(op)
    return walk.finish()


def _reshape(walk: Rewrite, op: Op, sources: dict[str, Value]) -> None:
    """One reshape for a row of them, none where the last shape is the first."""
    x = walk.new(op.inputs[0])
    x = sources.get(x.name, x)
    if x.shape == op.output.shape:
        walk.alias(op.output.name, x)
        return
    (value,) = walk.replace(op, "reshape", [x], **op.attrs)
    sources[value.name] = x


def _sink(walk: Rewrite, op: Op, sources: dict[str, Value]) -> bool:
    if op.output.dtype == "uint16":
        return False  # ttnn does not reshape tiles of these
    before = [sources.get(walk.new(name).name) for name in op.inputs]
    found = [value for value in before if value is not None]
    if not found or len(found) < len(before):
        return False
    same = {
        (value.shape, walk.new(name).shape) for value, name in zip(found, op.inputs, strict=True)
    }
    if len(same) != 1:
        return False
    value = walk.emit(op, op.name, found, **op.attrs)
    (result,) = walk.replace(op, "reshape", [value], shape=op.output.shape)
    sources[result.name] = value
    return True
