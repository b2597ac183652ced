"""gather in its three forms."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.lowering.rules.cases.base import Case, integers, normal

X, TABLE = normal(3, 5, 7), normal(11, 8)
IDS = integers(4, 6, low=0, high=11)
ORDER = np.array([4, 0, 3, 3, 1])


def _along(axis: int, name: str, x, count: int) -> Case:
    shape = list(x.shape)
    shape[axis] = count
    index = integers(*shape, low=-x.shape[axis], high=x.shape[axis])
    return Case(
        "gather",
        f"along axis {axis} {name}",
        lambda x, i: jnp.take_along_axis(x, i, axis),
        (x, index),
    )


CASES = [
    Case("gather", "rows of a weight", lambda i: jnp.asarray(TABLE)[i], (IDS,)),
    Case("gather", "rows of an input", lambda t, i: jnp.asarray(t)[i], (TABLE, IDS)),
    Case("gather", "take", lambda i: jnp.take(TABLE, i, axis=0), (IDS - 5,)),
    Case(
        "gather", "take clipped", lambda i: jnp.take(TABLE, i, axis=0, mode="clip"), (IDS * 3 - 9,)
    ),
    Case("gather", "take rank 1", lambda i: jnp.take(TABLE[:, 0], i), (IDS,)),
    Case("gather", "take columns", lambda i: jnp.take(TABLE, i, axis=1), (IDS[0] % 8,)),
    Case("gather", "take middle axis", lambda x, i: jnp.take(x, i, axis=1), (X, IDS[:2] % 5)),
    Case("gather", "take last axis", lambda x, i: jnp.take(x, i, axis=2), (X, IDS[0] % 7)),
    Case("gather", "take of int32", lambda x, i: jnp.take(x, i, axis=0), (integers(11, 8), IDS[0])),
    Case("dynamic_slice", "one computed row", lambda t, i: t[i], (jnp.asarray(TABLE), np.int32(7))),
    Case("gather", "known order", lambda x: jnp.asarray(x)[:, ORDER], (X,)),
    Case("gather", "known run", lambda x: jnp.asarray(x)[:, np.array([2, 3, 4])], (X,)),
    Case("gather", "known two runs", lambda x: jnp.asarray(x)[:, np.array([3, 4, 0])], (X,)),
    Case("gather", "known grid", lambda x: jnp.asarray(x)[np.array([[0, 2], [1, 1]])], (X,)),
    Case("gather", "known last axis", lambda x: jnp.take(x, ORDER, axis=-1), (X,)),
    Case("gather", "known rank 1", lambda x: jnp.asarray(x)[ORDER], (normal(7),)),
    Case("gather", "known int32", lambda x: jnp.asarray(x)[:, ORDER], (integers(3, 5),)),
    Case(
        "dynamic_slice",
        "computed rows",
        lambda x, i: lax.dynamic_slice_in_dim(x, i, 3, 1),
        (X, np.int32(9)),
    ),
    Case(
        "dynamic_slice",
        "computed and fixed",
        lambda x, i: lax.dynamic_slice(x, (1, i, 2), (2, 2, 4)),
        (X, np.int32(1)),
    ),
    _along(0, "fewer", X, 2),
    _along(1, "equal", X, 5),
    _along(2, "fewer", X, 3),
    _along(2, "more", X, 9),
    _along(0, "rank 1", normal(7), 4),
    _along(3, "rank 4", normal(2, 3, 4, 5), 2),
    Case(
        "gather",
        "along argmax",
        lambda x: jnp.take_along_axis(x, jnp.argmax(x, -1, keepdims=True), -1),
        (X,),
    ),
    Case(
        "gather",
        "along known",
        lambda x: jnp.take_along_axis(x, np.array([[4, 0, 2]]), 1),
        (normal(1, 5),),
    ),
]
