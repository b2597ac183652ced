"""Rows of a table by number."""

import jax

from moejax.regions import region


@region("moejax.embedding")
def embedding(ids: jax.Array, table_VD: jax.Array) -> jax.Array:
    """table[ids]: integers [...] -> [..., D]. ids must lie in [0, V); nothing checks it."""
    rows = table_VD.at[ids]
    return rows.get(mode="promise_in_bounds", wrap_negative_indices=False)
