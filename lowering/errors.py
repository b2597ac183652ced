"""Errors of the lowering: they name the operation, its operands, its place in the model."""

from collections.abc import Iterable
from typing import Any

from lowering.ir import Source


class LoweringError(ValueError):
    """A function that cannot be lowered: what, where in the user's code, and what to do."""


def describe(what: str, operands: Iterable[Any], source: Source) -> str:
    """`what` with the operands' shapes and dtypes, the Flax module path and the source line."""
    shapes = ", ".join(f"{o.dtype}[{','.join(map(str, o.shape))}]" for o in operands)
    place = [
        f"in module {source.module}" if source.module else "",
        f"at {source.line}" if source.line else "",
    ]
    return " ".join([f"cannot lower {what} of ({shapes})", *filter(None, place)])
