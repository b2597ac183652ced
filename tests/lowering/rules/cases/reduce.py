"""Reductions, cumulative sums and products, argmax."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tests.lowering.rules.cases.base import Case, booleans, grid, integers, normal, positive

X, TIES, I, P = normal(3, 5, 7) + 1, grid(3, 5, 7), integers(3, 5, 7), booleans(3, 5, 7)
AXES = [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2), ()]
DEEP = normal(2, 3, 1, 4, 5)


def _every_axis(rule: str, function, x, **bounds) -> list[Case]:
    return [
        Case(rule, f"axes {axes}", lambda x, axes=axes: function(x, axes), (x,), **bounds)
        for axes in AXES
    ]


CASES = [
    *_every_axis("reduce_sum", lambda x, axes: lax.reduce_sum(x, axes), X),
    *_every_axis("reduce_max", lambda x, axes: lax.reduce_max(x, axes), X),
    *_every_axis("reduce_min", lambda x, axes: lax.reduce_min(x, axes), X),
    *_every_axis(
        "reduce_prod",
        lambda x, axes: lax.reduce_prod(x, axes),
        positive(3, 5, 7) ** 0.25,
        bfloat16=0.02,
    ),
    *_every_axis("reduce_and", lambda x, axes: lax.reduce_and(x, axes), P | P[:, ::-1]),
    *_every_axis("reduce_or", lambda x, axes: lax.reduce_or(x, axes), P & P[:, ::-1]),
    Case("reduce_sum", "keepdims", lambda x: x - jnp.sum(x, axis=1, keepdims=True), (X,)),
    Case("reduce_sum", "rank 1", jnp.sum, (normal(7),)),
    Case("reduce_sum", "rank 0", lambda x: jnp.sum(x, axis=()), (normal(1)[0],)),
    Case("reduce_sum", "rank 5", lambda x: jnp.sum(x, axis=(1, 3)), (DEEP,)),
    Case("reduce_sum", "rank 5 all", jnp.sum, (DEEP,)),
    Case("reduce_sum", "unit axis", lambda x: jnp.sum(x, axis=2), (DEEP,)),
    Case("reduce_sum", "int32", lambda x: jnp.sum(x, axis=1), (I,)),
    Case("reduce_sum", "unit axes only", lambda x: jnp.sum(x, axis=(2,)) * 2, (DEEP,)),
    Case("reduce_sum", "count", lambda x: jnp.sum(x > 0, axis=-1), (TIES,)),
    Case(
        "reduce_sum",
        "broadcast operand",
        lambda x: jnp.sum(jnp.broadcast_to(x, (3, 5, 7)), 0),
        (X[:1],),
    ),
    Case("reduce_sum", "mean", lambda x: jnp.mean(x, axis=1), (X + 2,)),
    Case("reduce_sum", "mean of all", jnp.mean, (X + 2,)),
    Case(
        "reduce_sum", "mean keepdims", lambda x: x - jnp.mean(x, axis=(1, 2), keepdims=True), (X,)
    ),
    Case("reduce_max", "int32", lambda x: jnp.max(x, axis=1), (I,)),
    Case("reduce_min", "int32", lambda x: jnp.min(x, axis=0), (I,)),
    Case("reduce_max", "rank 5", lambda x: jnp.max(x, axis=(0, 3)), (DEEP,)),
    Case("reduce_or", "any", lambda x: jnp.any(x > 1, axis=-1), (TIES,)),
    Case("reduce_and", "all", lambda x: jnp.all(x > -2), (TIES,)),
    *(
        Case(f.__name__, f"axis {axis}", functools.partial(f, axis=axis), (TIES,))
        for f in (jnp.argmax, jnp.argmin)
        for axis in (0, 1, 2)
    ),
    Case("argmax", "flat", jnp.argmax, (TIES,)),
    Case("argmax", "rank 1", jnp.argmax, (grid(7),)),
    Case("argmax", "rank 4", lambda x: jnp.argmax(x, axis=1), (grid(2, 3, 4, 5),)),
    Case("argmax", "rank 4 first axis", lambda x: jnp.argmax(x, axis=0), (grid(2, 3, 4, 5),)),
    Case("argmax", "keepdims", lambda x: jnp.argmax(x, axis=1, keepdims=True) + 1, (TIES,)),
    Case("argmax", "bool", lambda x: jnp.argmax(x > 0, axis=-1), (TIES,)),
    *(
        Case(
            "cumsum",
            f"axis {axis} reverse {reverse}",
            lambda x, a=axis, r=reverse: lax.cumsum(x, a, r),
            (X,),
        )
        for axis in (0, 1, 2)
        for reverse in (False, True)
    ),
    Case("cumsum", "rank 1", jnp.cumsum, (normal(7),)),
    Case("cumsum", "rank 5", lambda x: jnp.cumsum(x, axis=3), (DEEP,)),
    Case("cumsum", "int32", lambda x: jnp.cumsum(x, axis=1), (I,)),
    Case("cumsum", "bool", lambda x: jnp.cumsum(x > 0, axis=1), (TIES,)),
    *(
        Case(
            "cumprod",
            f"axis {axis} reverse {reverse}",
            lambda x, a=axis, r=reverse: lax.cumprod(x, a, r),
            (positive(3, 5, 7) ** 0.5,),
            bfloat16=0.02,
        )
        for axis in (0, 2)
        for reverse in (False, True)
    ),
    Case("reduce_sum", "variance", lambda x: jnp.var(x, axis=1), (X,)),
    Case("reduce_sum", "logsumexp", lambda x: jax.nn.logsumexp(x, axis=-1), (X,)),
]
