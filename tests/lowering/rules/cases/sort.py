"""top_k and sort, with ties."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.lowering.rules.cases.base import Case, grid, integers, normal

X, TIES = normal(3, 5, 7), grid(3, 5, 7)

CASES = [
    Case("top_k", "last axis", lambda x: lax.top_k(x, 3), (TIES,)),
    Case("top_k", "all", lambda x: lax.top_k(x, 7), (TIES,)),
    Case("top_k", "one", lambda x: lax.top_k(x, 1), (TIES,)),
    Case("top_k", "axis", lambda x: lax.top_k(x, 2, axis=1), (TIES,)),
    Case("top_k", "rank 1", lambda x: lax.top_k(x, 2), (TIES[0, 0],)),
    Case("top_k", "rank 4", lambda x: lax.top_k(x, 2), (grid(2, 3, 2, 9),)),
    Case("top_k", "wide", lambda x: lax.top_k(x, 5), (grid(3, 100),)),
    Case("top_k", "values only", lambda x: lax.top_k(x, 3)[0] * 2, (TIES,)),
    Case(
        "top_k",
        "one hot",
        lambda x: jnp.sum(lax.top_k(x, 2)[1][..., None] == np.arange(7)[None, None, None], 2),
        (TIES,),
    ),
    *(
        Case("sort", f"axis {axis}", lambda x, a=axis: jnp.sort(x, a), (TIES,))
        for axis in (0, 1, 2)
    ),
    Case("sort", "rank 1", jnp.sort, (TIES[0, 0],)),
    Case("sort", "descending", lambda x: jnp.sort(x, descending=True), (TIES,)),
    Case("sort", "argsort", lambda x: jnp.argsort(x, axis=-1), (TIES,)),
    Case("sort", "argsort axis 1", lambda x: jnp.argsort(x, axis=1), (TIES,)),
    Case("sort", "argsort descending", lambda x: jnp.argsort(x, descending=True), (TIES,)),
    Case("sort", "carried along", lambda x, y: lax.sort((x, y), num_keys=1), (TIES, X)),
    Case(
        "sort",
        "int32 carried along",
        lambda x, i: lax.sort((x, i), num_keys=1),
        (TIES, integers(3, 5, 7)),
    ),
    Case(
        "sort",
        "two carried along",
        lambda x, y: lax.sort((x, y, y + 1), num_keys=1, dimension=1),
        (TIES, X),
    ),
]
