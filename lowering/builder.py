"""Builds a Program op by op: names, shapes, dtypes and weights in one place.

Rules emit through it, and so does every pass that rebuilds a Program.
"""

import builtins
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowering.errors import LoweringError
from lowering.ir import DType, Layout, Op, Policy, Program, Source, Value
from lowering.ops import OPS, infer

LOGICAL: dict[str, DType] = {
    "f": "float32",
    "V": "float32",
    "b": "float32",
    "i": "int32",
    "u": "uint32",
}


class NoDeviceDTypeError(LoweringError):
    """A JAX dtype that no device dtype stands for."""


def logical_dtype(dtype: np.dtype) -> DType:
    """The dtype that stands for a JAX dtype before the dtype policy: bool is 0.0 or 1.0."""
    if dtype.itemsize > 4:
        raise NoDeviceDTypeError(
            f"dtype {dtype} has no counterpart on the device; use 32 bits or fewer"
        )
    kind = LOGICAL.get(dtype.kind)
    if kind is None:
        raise NoDeviceDTypeError(f"dtype {dtype} has no counterpart on the device")
    return kind


def _shared_name(name: str) -> str:
    """Constants of all modules are one name."""
    return "constant" if name.endswith(".constant") else name


class Builder:
    """An unfinished Program."""

    def __init__(self, policy: Policy = "float32"):
        self.policy: Policy = policy
        self.inputs: list[Value] = []
        self.weights: dict[str, Value] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.state: dict[str, Value] = {}
        self.kept: dict[str, str] = {}  # state name -> its newest version
        self.in_place: set[int] = set()  # id of each traced node that may write state
        self.ops: list[Op] = []
        self.values: dict[str, Value] = {}
        self.producers: dict[str, Op] = {}
        self.origins: dict[str, Any] = {}  # value name -> the traced tensor that it holds
        self._names: set[str] = set()

    def input(self, name: str, shape: tuple[int, ...], dtype: DType) -> Value:
        """A tensor that the caller supplies at each run."""
        value = Value(self.fresh(name), shape, dtype)
        self.inputs.append(value)
        self.values[value.name] = value
        return value

    def add_state(self, name: str, shape: tuple[int, ...], dtype: DType) -> Value:
        """A tensor that stays on the device from run to run."""
        value = Value(self.fresh(name), shape, dtype)
        self.state[value.name] = self.values[value.name] = value
        self.kept[value.name] = value.name
        return value

    def weight(self, array: np.ndarray, name: str, dtype: DType | None = None) -> Value:
        """A tensor that is uploaded once; the same numbers under the same name are shared."""
        array = np.asarray(array)
        kind = dtype or logical_dtype(array.dtype)
        array = array.astype(
            np.int32 if kind == "int32" else np.uint32 if kind == "uint32" else np.float32
        )
        for known, value in self.weights.items():
            same_name = _shared_name(re.sub(r"_\d+$", "", known)) == _shared_name(name)
            if same_name and value.dtype == kind and np.array_equal(self.arrays[known], array):
                return value
        return self._add_weight(Value(self.fresh(name), array.shape, kind), array)

    def in_layout(self, weight: Value, layout: Layout) -> Value:
        """The same weight stored in another layout."""
        value = dataclasses.replace(weight, name=self.fresh(weight.name), layout=layout)
        return self._add_weight(value, self.arrays[weight.name])

    def _add_weight(self, value: Value, array: np.ndarray) -> Value:
        self.weights[value.name] = self.values[value.name] = value
        self.arrays[value.name] = array
        return value

    def adopt(self, program: Program) -> None:
        """Start from a program's inputs, state and weights (`finish` leaves out dead weights)."""
        self.inputs = list(program.inputs)
        self.weights = {value.name: value for value in program.weights}
        self.state = {value.name: value for value in program.state}
        self.kept = {value.name: value.name for value in program.state}
        given = (*program.inputs, *program.weights, *program.state)
        self.values = {value.name: value for value in given}
        self.arrays = dict(program.arrays)
        self._names |= {value.name for value in program.values().values()}

    def emit(
        self,
        name: str,
        inputs: Sequence[Value],
        source: Source,
        results: Sequence[str] = (),
        **attrs: Any,
    ) -> tuple[Value, ...]:
        """Append an op and return its results.

        They are called `results` (names nobody else has), or after the op and its module.
        """
        try:
            typed = infer(name, inputs, attrs)
        except ValueError as error:
            raise LoweringError(f"{error} (from {source})") from error
        names = results or [self.fresh(self._hint(name, source)) for _ in typed]
        layout = attrs["layout"] if name == "to_layout" else OPS[name].result
        outputs = tuple(
            Value(result, shape, dtype, layout, OPS[name].place)
            for result, (shape, dtype) in zip(names, typed, strict=True)
        )
        op = Op(name, tuple(value.name for value in inputs), outputs, attrs, source)
        self.ops.append(op)
        self.values |= {value.name: value for value in outputs}
        self.producers |= {value.name: op for value in outputs}
        if OPS[name].in_place is not None:
            self._keep(op)
        return outputs

    def _keep(self, op: Op) -> None:
        """The op's result is from here on the state that it writes."""
        written = op.inputs[OPS[op.name].in_place or 0]
        for state, newest in self.kept.items():
            if newest == written:
                self.kept[state] = op.output.name
                return
        raise LoweringError(
            f"{op}: {written!r} is no state, or was written since (from {op.source})"
        )

    def fresh(self, name: str) -> str:
        """`name`, or name_2, name_3 ... when it is taken; no name hides a python builtin."""
        name = f"{name}_" if hasattr(builtins, name) else name
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    @staticmethod
    def _hint(op: str, source: Source) -> str:
        parts = (part.rpartition(".")[2] for part in source.module.split("/")[1:])
        place = [part for part in parts if part.isidentifier()]
        return "_".join([*place, op])

    def finish(self, template: Program, outputs: Sequence[str]) -> Program:
        """The Program: `template`'s name, policy and arch; what nobody reads is left out."""
        needed, ops = {*outputs, *self.kept.values()}, []
        for op in reversed(self.ops):
            if any(value.name in needed for value in op.outputs):
                needed |= set(op.inputs)
                ops.append(op)
        weights = tuple(value for name, value in self.weights.items() if name in needed)
        return template.replace(
            inputs=tuple(self.inputs),
            weights=weights,
            state=tuple(self.state.values()),
            kept=tuple(self.kept.values()),
            ops=tuple(reversed(ops)),
            outputs=tuple(outputs),
            arrays={value.name: self.arrays[value.name] for value in weights},
        )
