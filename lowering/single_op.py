"""One op of a program as a program of its own: the smallest one that shows what a device makes of
it.
"""

from collections.abc import Mapping

import numpy as np

from lowering.ir import Op, Program, Value
from lowering.ops import OPS
from lowering.runtime.folder import Sample

Numbers = Mapping[str, np.ndarray]


def single_op(program: Program, index: int) -> Program:
    """The op with its operands as inputs, or as state where it writes in place."""
    known, op = program.values(), program.ops[index]
    ops = (*_movers(program, index), op)
    made = {value.name for one in ops for value in one.outputs}
    given = [known[n] for one in ops for n in one.inputs if n not in made]
    place = OPS[op.name].in_place
    state = () if place is None else (known[op.inputs[place]],)
    return program.replace(
        name=f"{program.name}.{index}",
        inputs=tuple(value for value in dict.fromkeys(given) if value not in state),
        weights=(),
        arrays={},
        ops=tuple(one.replace(frees=()) for one in ops),
        outputs=() if state else tuple(value.name for value in op.outputs),
        state=state,
        kept=tuple(value.name for value in op.outputs) if state else (),
    )


def sample_of(single: Program, numbers: Numbers) -> Sample:
    """Its sample, from the numbers of the whole program's values."""

    def of(values: tuple[Value, ...]) -> dict[str, np.ndarray]:
        return {value.name: numbers[value.name] for value in values}

    after = {v.name: numbers[new] for v, new in zip(single.state, single.kept, strict=True)}
    outputs = [numbers[name] for name in single.outputs]
    return Sample(of(single.inputs), outputs, of(single.state), after)


def _movers(program: Program, index: int) -> tuple[Op, ...]:
    """The ops that put an operand where no input can lie."""
    needed = [program.ops[index].inputs[place] for place in OPS[program.ops[index].name].in_rows]
    return tuple(op for op in program.ops if {v.name for v in op.outputs} & set(needed))
