"""Checks of config fields: a ValueError names the field, what it holds and what it may hold."""

from collections.abc import Sequence
from typing import Any


def require_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """The value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, choices))}")


def require_positive(name: str, value: Any) -> None:
    """The value is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number >= 1")


def require_probability(name: str, value: Any) -> None:
    """The value is a number in [0, 1)."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a number, 0 <= {name} < 1")
