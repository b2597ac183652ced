"""Every value is freed right after the op that reads it last."""

from lowering.ir import Program


def free_at_last_use(program: Program) -> Program:
    """Fill `frees` of each op; inputs, weights, state and results are never freed."""
    given = (*program.inputs, *program.weights, *program.state)
    kept = {value.name for value in given} | {*program.outputs, *program.kept}
    ops = []
    for op in reversed(program.ops):
        touched = dict.fromkeys((*op.inputs, *(value.name for value in op.outputs)))
        frees = tuple(name for name in touched if name not in kept)
        kept |= set(frees)
        ops.append(op.replace(frees=frees))
    return program.replace(ops=tuple(reversed(ops)))
