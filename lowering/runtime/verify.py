"""Checks a Program before anything of it runs: known ops, defined names, matching shapes.

Standard library only.
"""

from collections.abc import Iterable
from typing import get_args

from lowering.ir import Arch, DType, Layout, Memory, Op, Policy, Program, Value
from lowering.ops import OPS, infer


def verify(program: Program, *, layouts: bool = True) -> None:
    """ValueError, naming the op and its source, for the first thing that is wrong.

    `layouts=False` is for a program whose layouts are not placed yet.
    """
    _allowed("policy", program.policy, get_args(Policy))
    _allowed("arch", program.arch, get_args(Arch))
    known: dict[str, Value] = {}
    for value in (*program.inputs, *program.weights):
        _define(value, known, "the inputs and weights")
    freed: set[str] = set()
    for index, op in enumerate(program.ops):
        place = f"op {index} ({op.name}{f', {op.source}' if str(op.source) else ''})"
        _defined(op.inputs, known, freed, place)
        _check(op, known, place, layouts)
        for value in op.outputs:
            _define(value, known, place)
        _defined(op.frees, known, freed, place)
        freed.update(op.frees)
    _defined(program.outputs, known, freed, "the program's outputs")


def _check(op: Op, known: dict[str, Value], place: str, check_layouts: bool) -> None:
    inputs = [known[name] for name in op.inputs]
    try:
        typed = infer(op.name, inputs, op.attrs)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from error
    wanted = [(tuple(shape), dtype) for shape, dtype in typed]
    found = [(value.shape, value.dtype) for value in op.outputs]
    if found != wanted:
        raise ValueError(f"{place}: results are stated as {found}, but must be {wanted}")
    if not check_layouts or op.name == "to_layout":
        return
    layouts = OPS[op.name].layouts or ("tile",) * len(inputs)
    for value, layout in zip(inputs, layouts, strict=False):
        if value.layout != layout:
            raise ValueError(f"{place}: needs {value} in {layout} layout")


def _define(value: Value, known: dict[str, Value], place: str) -> None:
    if value.name in known:
        raise ValueError(f"{place}: value {value.name!r} is defined twice")
    _allowed(f"{place}: dtype of {value.name!r}", value.dtype, get_args(DType))
    _allowed(f"{place}: layout of {value.name!r}", value.layout, get_args(Layout))
    _allowed(f"{place}: memory of {value.name!r}", value.memory, get_args(Memory))
    known[value.name] = value


def _defined(names: Iterable[str], known: dict[str, Value], freed: set[str], place: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{place}: value {name!r} is used before it is defined")
        if name in freed:
            raise ValueError(f"{place}: value {name!r} is used after it is freed")


def _allowed(what: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        raise ValueError(f"{what} is {found!r}; allowed are {', '.join(allowed)}")
