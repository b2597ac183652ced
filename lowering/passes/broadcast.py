"""Broadcasts stay implicit as long as the ops broadcast by themselves."""

from lowering.ir import Op, Program, Value
from lowering.ops import ELEMENTWISE
from lowering.passes.rewrite import Rewrite


def keep_broadcasts_lazy(program: Program) -> Program:
    """Drop an expand before ops that broadcast; emit it only where its full size is needed."""
    walk = Rewrite(program)
    full: dict[str, tuple[int, ...]] = {}  # old name -> its shape, while `new` is smaller

    def materialise(op: Op, name: str) -> Value:
        value = walk.new(name)
        if name in full:
            value = walk.emit(op, "expand", [value], shape=full.pop(name))
            walk.alias(name, value)
        return value

    for op in program.ops:
        if op.name == "expand":
            value = walk.new(op.inputs[0])
            walk.alias(op.output.name, value)
            full[op.output.name] = op.output.shape
        elif op.name in ELEMENTWISE:
            (value,) = walk.copy(op)
            if value.shape != op.output.shape:
                full[op.output.name] = op.output.shape
        else:
            walk.copy(op, [materialise(op, name) for name in op.inputs])
    for name in program.outputs:
        if name in full:
            materialise(walk.producers[name], name)
    return walk.finish()
