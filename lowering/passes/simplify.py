"""Shape-only ops that meet become one, or none."""

from lowering.ir import Op, Program, Value
from lowering.passes.rewrite import Rewrite


def simplify(program: Program) -> Program:
    """reshape of reshape, permute of permute, and either where it changes nothing."""
    walk = Rewrite(program)
    sources: dict[str, tuple[Op, Value]] = {}  # new value -> its shape-only op and that op's input
    for op in program.ops:
        if op.name in ("reshape", "permute"):
            _shape_op(walk, op, sources)
        else:
            walk.copy(op)
    return walk.finish()


def _shape_op(walk: Rewrite, op: Op, sources: dict[str, tuple[Op, Value]]) -> None:
    x = walk.new(op.inputs[0])
    name, attrs = op.name, dict(op.attrs)
    before = sources.get(x.name)
    if before is not None and before[0].name == "permute" and name == "permute":
        attrs["dims"] = tuple(before[0].attrs["dims"][axis] for axis in attrs["dims"])
        x = before[1]
    elif before is not None and before[0].name == "reshape":
        if name == "permute" and _moves_only_unit_axes(x, attrs["dims"]):
            name, attrs = "reshape", {"shape": op.output.shape}
        if name == "reshape":
            x = before[1]
    if name == "permute" and _moves_only_unit_axes(x, attrs["dims"]):
        name, attrs = "reshape", {"shape": op.output.shape}
    if name == "reshape" and x.shape == tuple(attrs["shape"]):
        walk.alias(op.output.name, x)
        return
    (value,) = walk.replace(op, name, [x], **attrs)
    sources[value.name] = (walk.builder.ops[-1], x)


def _moves_only_unit_axes(x: Value, dims: tuple[int, ...]) -> bool:
    """Whether the axes longer than 1 keep their order, so that the data does not move."""
    long_axes = [axis for axis in dims if x.shape[axis] != 1]
    return long_axes == sorted(long_axes)
