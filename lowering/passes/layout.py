"""Tile or row-major, and rows on cores: the only place where a program converts between them."""

from lowering.ir import Layout, Op, Program, Value
from lowering.ops import OPS
from lowering.passes.rewrite import Rewrite


def place_layouts(program: Program) -> Program:
    """Give each op the layout it needs; one conversion serves all readers, weights need none."""
    walk = Rewrite(program)
    converted: dict[tuple[str, str], Value] = {}
    for op in program.ops:
        inputs = [
            _in_layout(walk, op, walk.new(name), _needed(op, index), converted)
            for index, name in enumerate(op.inputs)
        ]
        for index in OPS[op.name].in_rows:
            inputs[index] = walk.emit(op, "to_memory_config", [inputs[index]])
        walk.copy(op, inputs)
    return walk.finish()


def _needed(op: Op, index: int) -> Layout:
    layouts = OPS[op.name].layouts
    return layouts[index] if index < len(layouts) else "tile"


def _in_layout(walk: Rewrite, op: Op, value: Value, layout: Layout, converted) -> Value:
    if value.layout == layout:
        return value
    key = (value.name, layout)
    if key not in converted:
        if value.name in walk.builder.weights:
            converted[key] = walk.builder.in_layout(value, layout)
        else:
            converted[key] = walk.emit(op, "to_layout", [value], layout=layout)
    return converted[key]
