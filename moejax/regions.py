"""Regions: named-jit marks that XLA runs as they are and the lowering understands.

A region is a plain jnp function. Calling it runs one cached `jax.jit` whose name carries the
region and its static attributes, so a traced graph shows
`jit[name=moejax.linear[activation='relu']]` with the exact maths as its body. Gradients, vmap,
remat, scan and an outer jit work as for any jitted function.

    @region("moejax.scale")
    def scale(x, *, factor):
        return x * factor

Positional arguments are arrays, pytrees of arrays or None; keyword-only arguments are static and
hashable.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True, eq=False)
class Region:
    """A marked function, and what the lowering may know about it.

    `float32` keeps everything computed inside in float32 under every device dtype policy (router
    logits, softmax over experts, normalisation statistics, mixture sums).
    """

    name: str
    function: Callable[..., Any]
    float32: bool = False


@dataclass(frozen=True)
class RegionCall:
    """One use of a region: its static attributes, and the structure of its positional arguments."""

    region: Region
    attrs: dict[str, Any]
    structure: Any

    def arguments(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The positional arguments that these array leaves make up."""
        return jax.tree.unflatten(self.structure, leaves)

    def body(self, *leaves):
        """The region's maths on these array leaves, without the mark."""
        return self.region.function(*self.arguments(leaves), **self.attrs)


_REGIONS: dict[str, Region] = {}
_CALLS: dict[str, RegionCall] = {}


def region(
    name: str, *, float32: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a jnp function as the region `name`; ValueError if another one has that name, or if it
    takes an open number of arguments.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        if name in _REGIONS:
            raise ValueError(f"region {name!r} is already defined by {_REGIONS[name].function}")
        marked = _REGIONS[name] = Region(name, function, float32)
        signature = inspect.signature(function)
        static = _static_attributes(name, signature)

        @functools.wraps(function)
        def wrapper(*args, **attrs):
            unknown = attrs.keys() - static
            if unknown:
                raise TypeError(f"{name} takes {sorted(static)}, not {sorted(unknown)}")
            # with every argument stated, a tag stands for one structure of arguments
            bound = signature.bind(*args, **attrs)
            bound.apply_defaults()
            leaves, structure = jax.tree.flatten(bound.args)
            return _jitted(marked, tuple(sorted(bound.kwargs.items())), structure)(*leaves)

        return wrapper

    return mark


def find_call(tag: str) -> RegionCall | None:
    """The region call that a jit of this name stands for, or None."""
    return _CALLS.get(tag)


def all_regions() -> dict[str, Region]:
    """Every region defined so far, by name."""
    return dict(_REGIONS)


def _static_attributes(name: str, signature: inspect.Signature) -> set[str]:
    parameters = signature.parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise ValueError(f"region {name!r} takes * or ** arguments; each needs a name of its own")
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


@functools.cache
def _jitted(marked: Region, items: tuple[tuple[str, Any], ...], structure: Any):
    call = RegionCall(marked, dict(items), structure)
    attributes = ",".join(f"{key}={value!r}" for key, value in items)
    flat = jax.tree.structure((0,) * structure.num_leaves)
    arguments = "" if structure == flat else str(structure).removeprefix("PyTreeDef")
    tag = f"{marked.name}[{attributes}]{arguments}"
    _CALLS[tag] = call

    def run(*leaves):
        return call.body(*leaves)

    run.__name__ = run.__qualname__ = tag
    return jax.jit(run)
