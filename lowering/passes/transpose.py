"""Permutes next to a matmul become its transpose flags."""

from lowering.ir import Op, Program, Value
from lowering.passes.rewrite import Rewrite


def fold_transposes(program: Program) -> Program:
    """matmul(permute(a), b) -> matmul(a, b, transpose_a=True), if only the last two axes swap."""
    walk = Rewrite(program)
    for op in program.ops:
        if op.name != "matmul":
            walk.copy(op)
            continue
        inputs, flags = [], {}
        for name, flag in zip(op.inputs, ("transpose_a", "transpose_b"), strict=True):
            value = _before_swap(walk, name)
            if value is not None:
                flags[flag] = not op.attrs.get(flag, False)
            inputs.append(value or walk.new(name))
        walk.replace(op, "matmul", inputs, **{**op.attrs, **flags})
    return walk.finish()


def _before_swap(walk: Rewrite, name: str) -> Value | None:
    """The value whose last two axes a permute swapped to give `name`, or None."""
    producer: Op | None = walk.producers.get(name)
    if producer is None or producer.name != "permute":
        return None
    dims = tuple(producer.attrs["dims"])
    swap = (*range(len(dims) - 2), len(dims) - 1, len(dims) - 2)
    return walk.new(producer.inputs[0]) if dims == swap else None
