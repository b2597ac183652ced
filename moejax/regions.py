"""Regions: named-jit marks that XLA runs as they are and the lowering understands.

A region is a plain jnp function. Calling it runs one cached `jax.jit` whose name carries the region
and its static attributes, so a traced graph shows `jit[name=moejax.linear[activation='relu']]` with the exact
maths as its body. Gradients, vmap, remat, scan and an outer jit work as for any jitted function.

    @region("moejax.scale")
    def scale(x, *, factor):
        return x * factor

Positional arguments are arrays (or pytrees, or None); keyword-only arguments are static and hashable.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True, eq=False)
class Region:
    """A marked function, and what the lowering may know about it.

    `float32` keeps everything computed inside in float32 under every device dtype policy (router logits, softmax
    over experts, normalisation statistics, mixture sums).
    """

    name: str
    function: Callable[..., Any]
    float32: bool = False


@dataclass(frozen=True)
class RegionCall:
    """One use of a region: which one, and its static attributes."""

    region: Region
    attrs: dict[str, Any]

    def body(self, *args):
        """The region's maths on these arrays, without the mark."""
        return self.region.function(*args, **self.attrs)


_REGIONS: dict[str, Region] = {}
_CALLS: dict[str, RegionCall] = {}


def region(
    name: str, *, float32: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a jnp function as the region `name`; ValueError if another function already has that name."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _REGIONS:
            raise ValueError(f"region {name!r} is already defined by {_REGIONS[name].function}")
        marked = Region(name, function, float32)
        _REGIONS[name] = marked
        static = {
            parameter.name: parameter.default
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

        @functools.cache
        def jitted(items: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
            call = RegionCall(marked, dict(items))
            tag = f"{name}[{','.join(f'{key}={value!r}' for key, value in items)}]"
            _CALLS[tag] = call

            def run(*args):
                return call.body(*args)

            run.__name__ = run.__qualname__ = tag
            return jax.jit(run)

        @functools.wraps(function)
        def wrapper(*args, **attrs):
            unknown = attrs.keys() - static.keys()
            if unknown:
                raise TypeError(
                    f"{name} has no static attribute {sorted(unknown)}; it takes {sorted(static)}"
                )
            return jitted(tuple(sorted({**static, **attrs}.items())))(*args)

        return wrapper

    return mark


def find_call(tag: str) -> RegionCall | None:
    """The region call that a jit of this name stands for, or None."""
    return _CALLS.get(tag)


def all_regions() -> dict[str, Region]:
    """Every region defined so far, by name."""
    return dict(_REGIONS)
