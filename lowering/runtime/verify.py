"""Checks a Program before anything of it runs: known ops, defined names, matching shapes.

Standard library only.
"""

from collections.abc import Iterable
from typing import get_args

from lowering.ir import Arch, DType, Layout, Memory, Op, Policy, Program, Value
from lowering.ops import OPS, infer

# ops whose result may share its operand's memory
VIEWS = frozenset({"reshape", "pad"})


def verify(program: Program, *, layouts: bool = True) -> None:
    """ValueError, naming the op and its source, for the first thing that is wrong.

    `layouts=False` is for a program whose layouts are not placed yet.
    """
    _allowed("policy", program.policy, get_args(Policy))
    _allowed("arch", program.arch, get_args(Arch))
    known: dict[str, Value] = {}
    for value in (*program.inputs, *program.weights, *program.state):
        _define(value, known, "the inputs, weights and state")
    state = _Versions(program)
    freed: set[str] = set()
    for index, op in enumerate(program.ops):
        place = f"op {index} ({op.name}{f', {op.source}' if str(op.source) else ''})"
        _defined(op.inputs, known, freed, place)
        state.see(op, place)
        _check(op, known, place, layouts)
        for value in op.outputs:
            _define(value, known, place)
        _defined(op.frees, known, freed, place)
        freed.update(op.frees)
    _defined(program.outputs, known, freed, "the program's outputs")
    state.finish(program)


class _Versions:
    """State is written in place: nobody may read what it was before, nor a view of that."""

    def __init__(self, program: Program):
        self._newest = {value.name: value.name for value in program.state}  # version -> state
        self._views: dict[str, str] = {}  # result of a shape-only op -> what it may share
        self._stale: dict[str, str] = {}

    def see(self, op: Op, place: str) -> None:
        self._fresh(op.inputs, place)
        written = OPS[op.name].in_place if op.name in OPS else None
        if written is not None:
            self._write(op, written, place)
        elif op.name in VIEWS:
            source = op.inputs[0]
            self._views[op.outputs[0].name] = self._views.get(source, source)

    def _write(self, op: Op, index: int, place: str) -> None:
        before = op.inputs[index] if index < len(op.inputs) else ""
        if before not in self._newest:
            raise ValueError(f"{place}: writes {before!r}, which is no state")
        self._newest[op.output.name] = self._newest.pop(before)
        self._stale[before] = place
        self._stale |= {view: place for view, source in self._views.items() if source == before}

    def _fresh(self, names: Iterable[str], place: str) -> None:
        for name in names:
            if name in self._stale:
                raise ValueError(f"{place}: reads {name!r}, overwritten by {self._stale[name]}")

    def finish(self, program: Program) -> None:
        self._fresh(program.outputs, "the program's outputs")
        states = tuple(self._newest.get(name) for name in program.kept)
        if states != tuple(value.name for value in program.state):
            raise ValueError(f"kept is {program.kept}, which is not the newest of each state")


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
    for index in OPS[op.name].in_rows:
        if inputs[index].memory != "rows":
            raise ValueError(f"{place}: needs {inputs[index]} in rows")
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
