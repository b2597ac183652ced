"""Rebuild a Program op by op: what every pass that changes ops shares."""

from collections.abc import Sequence
from typing import Any

from lowering.builder import Builder
from lowering.ir import Op, Program, Value


class Rewrite:
    """A walk over `old` that builds a new Program.

    `new(name)` is the new value that stands for an old one; `copy` carries an op over; `alias` lets
    one value stand for another; `emit` adds an op in the place of an old one.
    """

    def __init__(self, old: Program):
        self.old = old
        self.builder = Builder(old.policy)
        self.builder.adopt(old)
        self.uses = old.uses()
        self.producers = {value.name: op for op in old.ops for value in op.outputs}
        given = (*old.inputs, *old.weights, *old.state)
        self._new: dict[str, Value] = {value.name: value for value in given}

    def new(self, name: str) -> Value:
        """The new value that stands for an old name."""
        return self._new[name]

    def alias(self, name: str, value: Value) -> None:
        """From here on `value` stands for the old name."""
        self._new[name] = value

    def copy(self, op: Op, inputs: Sequence[Value] | None = None) -> tuple[Value, ...]:
        """The op on its new inputs, with its result names; shapes and dtypes inferred anew."""
        return self.replace(op, op.name, inputs, **op.attrs)

    def replace(
        self, op: Op, name: str, inputs: Sequence[Value] | None = None, **attrs: Any
    ) -> tuple[Value, ...]:
        """Another op whose results stand for the results of `op`."""
        inputs = [self.new(i) for i in op.inputs] if inputs is None else inputs
        names = [value.name for value in op.outputs]
        results = self.builder.emit(name, inputs, op.source, names, **attrs)
        for old, value in zip(names, results, strict=True):
            self.alias(old, value)
        return results

    def emit(self, op: Op, name: str, inputs: Sequence[Value], **attrs: Any) -> Value:
        """A further op with the source of `op`."""
        (value,) = self.builder.emit(name, inputs, op.source, **attrs)
        return value

    def used_once(self, name: str) -> bool:
        """Whether exactly one op reads the old value and it is no result of the program."""
        read = self.uses.get(name, ())
        return len(read) == 1 and read[0] < len(self.old.ops)

    def absorbs(self, op: Op, name: str) -> Op | None:
        """The old op that made `name`, if only `op` reads it, in the same precision."""
        producer = self.producers.get(name)
        if producer is None or not self.used_once(name):
            return None
        return producer if producer.source.float32 == op.source.float32 else None

    def finish(self) -> Program:
        return self.builder.finish(self.old, [self.new(name).name for name in self.old.outputs])
