"""Integer inputs arrive as their reader wants them: the host converts for nothing."""

from lowering.ir import Op, Program, Value
from lowering.passes.rewrite import Rewrite


def adapt_inputs(program: Program) -> Program:
    """An integer input that only a typecast or a change of layout reads is uploaded so."""
    while (found := _adaptable(program)) is not None:
        value, op = found
        arriving = Value(value.name, value.shape, op.output.dtype, op.output.layout)
        inputs = tuple(arriving if v.name == value.name else v for v in program.inputs)
        walk = Rewrite(program.replace(inputs=inputs))
        for each in program.ops:
            if each is op:
                walk.alias(op.output.name, arriving)
            else:
                walk.copy(each)
        program = walk.finish()
    return program


def _adaptable(program: Program) -> tuple[Value, Op] | None:
    """An input, and the only op that reads it: to unsigned numbers, or to another layout."""
    uses = program.uses()
    for value in program.inputs:
        reads = uses.get(value.name, [])
        if value.dtype not in ("int32", "uint32") or len(reads) != 1:
            continue
        op = program.ops[reads[0]] if reads[0] < len(program.ops) else None
        if op is None:
            continue
        unsigned = op.name == "typecast" and op.output.dtype == "uint32"
        if unsigned or op.name == "to_layout":
            return value, op
    return None
