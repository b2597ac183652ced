"""Equal ops on equal operands are computed once."""

import json

from lowering.ir import Program
from lowering.passes.rewrite import Rewrite


def share_common_subexpressions(program: Program) -> Program:
    """The first of several equal ops serves them all; float32 and other ops are kept apart."""
    walk = Rewrite(program)
    seen: dict[tuple, tuple] = {}
    for op in program.ops:
        inputs = tuple(walk.new(name).name for name in op.inputs)
        key = (op.name, inputs, json.dumps(op.attrs, sort_keys=True), op.source.float32)
        if key in seen:
            for value, shared in zip(op.outputs, seen[key], strict=True):
                walk.alias(value.name, shared)
        else:
            seen[key] = walk.copy(op)
    return walk.finish()
