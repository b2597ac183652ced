"""dot_general in every arrangement of batch, contracted and free axes."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.lowering.rules.cases.base import Case, normal


def _einsum(equation: str, *shapes: tuple[int, ...], known: int | None = None, **bounds) -> Case:
    """An einsum of inputs; the operand number `known` is a weight."""
    arrays = [normal(*shape, seed=index) for index, shape in enumerate(shapes)]
    inputs = tuple(array for index, array in enumerate(arrays) if index != known)

    def function(*values):
        rest = iter(values)
        operands = [arrays[i] if i == known else next(rest) for i in range(len(arrays))]
        return jnp.einsum(equation, *operands)

    name = equation if known is None else f"{equation} weight {known}"
    return Case("dot_general", name, function, inputs, **bounds)


def _arrangement(index: int, a_axes: str, b_axes: str) -> Case:
    """b: batch axes, k: contracted, m and n: free; in this order of axes."""
    sizes = {"b": 3, "c": 2, "k": 5, "l": 4, "m": 7, "n": 6}
    a, b = (normal(*(sizes[axis] for axis in axes), seed=index) for axes in (a_axes, b_axes))
    sums = [axis for axis in a_axes if axis in "kl" and axis in b_axes]
    batch = [axis for axis in a_axes if axis in "bc" and axis in b_axes]
    numbers = tuple(
        tuple(tuple(axes.index(axis) for axis in kind) for axes in (a_axes, b_axes))
        for kind in (sums, batch)
    )
    name = f"{a_axes},{b_axes}"
    function = functools.partial(lax.dot_general, dimension_numbers=numbers)
    return Case("dot_general", name, function, (a, b), bfloat16=0.01)


_ARRANGEMENTS = [
    *itertools.product(("mk", "km", "k"), ("kn", "nk", "k")),
    *itertools.product(("bmk", "mbk", "kbm", "bk"), ("bkn", "nkb", "kb")),
    ("bcmk", "cbkn"),
    ("cmbk", "bknc"),
    ("mkl", "lkn"),
    ("klb", "blk"),
    ("mbk", "kn"),
    ("m", "n"),
]

CASES = [
    *(_arrangement(index, *row) for index, row in enumerate(_ARRANGEMENTS)),
    _einsum("mk,kn->mn", (5, 7), (7, 33), known=1),
    _einsum("mk,kn->mn", (5, 7), (7, 33), known=0),
    _einsum("bmk,kn->bmn", (2, 5, 7), (7, 6), known=1),
    _einsum("kn,bmk->bmn", (7, 6), (2, 5, 7), known=0),
    _einsum("sq,bsc->bqc", (9, 6), (2, 9, 5), known=0),
    _einsum("sq,bsc->bqc", (9, 6), (2, 9, 5)),
    _einsum("csq,bsc->bqc", (5, 9, 6), (2, 9, 5), known=0),
    _einsum("nd,edf->enf", (5, 7), (3, 7, 6), known=1),
    _einsum("end,edf->enf", (3, 5, 7), (3, 7, 6), known=1),
    _einsum("bqhd,bkhd->bhqk", (2, 5, 3, 8), (2, 6, 3, 8)),
    _einsum("bhqk,bkhd->bqhd", (2, 3, 5, 6), (2, 6, 3, 8)),
    _einsum("bsd,dhk->bshk", (2, 5, 7), (7, 3, 4), known=1),
    _einsum("bshk,hkd->bsd", (2, 5, 3, 4), (3, 4, 7), known=1),
    _einsum("i,j->ij", (5,), (7,)),
    _einsum("ij,ij->", (5, 7), (5, 7)),
    _einsum("bij,bij->b", (3, 5, 7), (3, 5, 7)),
    _einsum("ab,bc,cd->ad", (3, 5), (5, 7), (7, 4), bfloat16=0.012),
    Case("dot_general", "same input twice", lambda x: x @ x.T, (normal(5, 7),)),
    Case("dot_general", "transposed", lambda x, y: x.T @ y.T, (normal(7, 5), normal(6, 7))),
    Case("dot_general", "rank 5", jnp.matmul, (normal(2, 1, 3, 5, 7), normal(2, 1, 3, 7, 4))),
    Case("dot_general", "unit axes", jnp.matmul, (normal(1, 1), normal(1, 1))),
    Case("dot_general", "batch by one", jnp.matmul, (normal(3, 5, 7), normal(1, 7, 4))),
    Case("dot_general", "one by batch", jnp.matmul, (normal(1, 5, 7), normal(3, 7, 4))),
    Case(
        "dot_general",
        "outer batch",
        lambda x, y: jnp.einsum("amk,bkn->abmn", x, y),
        (normal(2, 5, 7), normal(3, 7, 4)),
    ),
    Case(
        "dot_general",
        "dense with bias",
        lambda x: x @ normal(7, 6) + normal(6)[None],
        (normal(5, 7),),
    ),
    Case(
        "dot_general",
        "dense with bias and relu",
        lambda x: jnp.maximum(x @ normal(7, 6) + normal(6)[None, None], 0),
        (normal(3, 5, 7),),
    ),
    Case("dot_general", "tile multiples", jnp.matmul, (normal(32, 64), normal(64, 32))),
    Case(
        "dot_general",
        "large contraction",
        lambda x: x @ np.tile(normal(64, 3), (8, 1)),
        (normal(4, 512),),
    ),
]
