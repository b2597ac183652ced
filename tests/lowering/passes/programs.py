"""Tiny programs for the tests of passes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowering.backends.reference import run
from lowering.builder import Builder
from lowering.ir import Policy, Program, Source, Value
from tests.lowering.rules.cases.base import normal

PRECISE = Source(float32=True)


class Tiny:
    """A program under construction: `p.op("add", a, b)` emits, `p.done(result)` finishes."""

    def __init__(self, policy: Policy = "float32"):
        self.builder = Builder(policy)
        self.policy: Policy = policy

    def input(self, *shape: int, dtype: Any = "float32") -> Value:
        return self.builder.input(f"x{len(self.builder.inputs)}", shape, dtype)

    def weight(self, *shape: int) -> Value:
        return self.builder.weight(normal(*shape, seed=len(self.builder.weights)), "w")

    def op(self, name: str, *inputs: Value, precise: bool = False, **attrs: Any) -> Value:
        return self.ops(name, *inputs, precise=precise, **attrs)[0]

    def ops(
        self, name: str, *inputs: Value, precise: bool = False, **attrs: Any
    ) -> tuple[Value, ...]:
        return self.builder.emit(name, inputs, PRECISE if precise else Source(), **attrs)

    def done(self, *results: Value) -> Program:
        template = Program("tiny", (), (), (), (), self.policy)
        return self.builder.finish(template, [value.name for value in results])


def names(program: Program) -> list[str]:
    return [op.name for op in program.ops]


def unchanged(pass_: Callable[[Program], Program], program: Program) -> Program:
    """The program after a pass, which must compute what it did before."""
    after = pass_(program)
    inputs = {v.name: _numbers(v) for v in program.inputs}
    for found, expected in zip(run(after, inputs), run(program, inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return after


def _numbers(value: Value) -> np.ndarray:
    if value.dtype == "float32":
        return normal(*value.shape, seed=7)
    return np.arange(np.prod(value.shape)).reshape(value.shape).astype(value.dtype)


def dtypes(program: Program) -> Sequence[str]:
    return [value.dtype for op in program.ops for value in op.outputs]
