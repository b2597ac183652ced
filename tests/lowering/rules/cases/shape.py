"""Reshape, transpose, broadcast, slices, concatenation, padding, and what folds away."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.lowering.rules.cases.base import Case, booleans, grid, integers, normal

X, Y, I = normal(3, 5, 7), normal(3, 5, 7, seed=1), integers(3, 5)
SHAPES = [(105,), (3, 35), (15, 7), (1, 15, 7), (3, 1, 5, 7), (3, 5, 7, 1), (5, 3, 7), (7, 5, 3)]
DEEP = normal(2, 3, 1, 4, 5)

_RESHAPE = [
    *(Case("reshape", f"{shape}", lambda x, s=shape: jnp.reshape(x, s), (X,)) for shape in SHAPES),
    Case("reshape", "to rank 0", lambda x: x.reshape(()), (normal(1, 1),)),
    Case("reshape", "from rank 0", lambda x: x.reshape(1, 1), (normal(1)[0],)),
    Case("reshape", "aligned split", lambda x: x.reshape(2, 32, 7), (normal(64, 7),)),
    Case("reshape", "int32", lambda x: x.reshape(15), (I,)),
    Case("reshape", "bool", lambda x: x.reshape(15), (booleans(3, 5),)),
    Case("reshape", "and back", lambda x: x.reshape(15, 7).reshape(3, 5, 7) + 1, (X,)),
    Case("squeeze", "one axis", lambda x: jnp.squeeze(x, 2), (DEEP,)),
    Case("squeeze", "index", lambda x: x[1], (X,)),
    Case("squeeze", "to rank 0", lambda x: x[1, 2, 3], (X,)),
]
_TRANSPOSE = [
    *(
        Case("transpose", f"{order}", lambda x, o=order: jnp.transpose(x, o), (X,))
        for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1))
    ),
    Case("transpose", "rank 2", jnp.transpose, (normal(5, 7),)),
    Case("transpose", "rank 4", lambda x: jnp.transpose(x, (0, 2, 1, 3)), (normal(2, 3, 5, 7),)),
    Case("transpose", "rank 5", lambda x: jnp.transpose(x, (4, 0, 3, 1, 2)), (DEEP,)),
    Case("transpose", "twice", lambda x: x.transpose(2, 0, 1).transpose(1, 2, 0) * 2, (X,)),
    Case("transpose", "unit axes", lambda x: jnp.transpose(x, (0, 2, 1)), (normal(5, 1, 7),)),
    Case("transpose", "int32", jnp.transpose, (I,)),
    Case("transpose", "moveaxis", lambda x: jnp.moveaxis(x, 0, -1), (X,)),
]
_BROADCAST = [
    Case("broadcast_in_dim", "result", lambda x: jnp.broadcast_to(x, (4, 5, 7)), (X[:1],)),
    Case("broadcast_in_dim", "middle axis", lambda x: jnp.broadcast_to(x, (3, 6, 7)), (X[:, :1],)),
    Case("broadcast_in_dim", "two axes", lambda x: jnp.broadcast_to(x, (4, 6, 7)), (X[:1, :1],)),
    Case(
        "broadcast_in_dim",
        "new axes",
        lambda x: jnp.broadcast_to(x[:, None], (5, 7)),
        (normal(5),),
    ),
    Case("broadcast_in_dim", "rank 0", lambda x: jnp.broadcast_to(x, (5, 7)), (normal(1)[0],)),
    Case(
        "broadcast_in_dim",
        "lazy",
        lambda x, y: x[:, None] * y[None, :, None],
        (normal(3, 7), normal(5)),
    ),
    Case(
        "broadcast_in_dim",
        "into matmul",
        lambda x, w: jnp.broadcast_to(x, (4, 5, 7)) @ w,
        (X[:1], normal(4, 7, 3)),
    ),
    Case("broadcast_in_dim", "int32", lambda x: jnp.broadcast_to(x[:, None], (3, 4, 5)), (I,)),
    Case(
        "broadcast_in_dim",
        "used twice",
        lambda x, y: (jnp.broadcast_to(x, y.shape) + y, jnp.broadcast_to(x, y.shape)),
        (X[:1], Y),
    ),
    Case("broadcast_in_dim", "repeat", lambda x: jnp.repeat(x, 2, axis=1), (X,)),
    Case("tile", "axes", lambda x: jnp.tile(x, (2, 1, 3)), (X,)),
    Case("tile", "unit axis", lambda x: jnp.tile(x, (2, 3, 1)), (X[:1, :1],)),
    Case("tile", "more axes", lambda x: jnp.tile(x, (2, 1, 3)), (normal(5, 7),)),
    Case("tile", "int32", lambda x: jnp.tile(x, (1, 2)), (I,)),
    Case("tile", "rank 1", lambda x: jnp.tile(x, 3), (normal(5),)),
]
_SLICE = [
    Case("slice", "rows", lambda x: x[:, :4], (X,)),
    Case("slice", "unaligned", lambda x: x[1:3, 2:5, 3:6], (X,)),
    Case("slice", "strided", lambda x: x[::2, 1::2, ::3], (X,)),
    Case("slice", "last", lambda x: x[:, -1:], (X,)),
    Case("slice", "aligned", lambda x: x[32:64], (normal(64, 32),)),
    Case("slice", "rank 1", lambda x: x[2:5], (normal(7),)),
    Case("slice", "rank 5", lambda x: x[:, 1:, :, :2], (DEEP,)),
    Case("slice", "int32", lambda x: x[1:, 2:4], (I,)),
    Case("slice", "last step", lambda x: x - x[:, -1:], (X,)),
    Case("split", "two parts", lambda x: tuple(jnp.split(x, 2, axis=2)), (normal(3, 5, 8),)),
    Case("split", "uneven", lambda x: tuple(jnp.split(x, [2, 3], axis=1)), (X,)),
    Case("split", "with an empty part", lambda x: jnp.split(x, [0, 3], axis=1)[1:], (X,)),
    Case("unstack", "first axis", lambda x: tuple(lax.unstack(x, axis=0)), (X,)),
    Case(
        "unstack",
        "loop",
        lambda x: sum(row * 2 for row in jnp.unstack(x, axis=1)),
        (X,),
        bfloat16=0.012,
    ),
    Case(
        "dynamic_slice", "static starts", lambda x: lax.dynamic_slice(x, (1, 2, 0), (2, 3, 7)), (X,)
    ),
    Case("dynamic_slice", "clamped", lambda x: lax.dynamic_slice(x, (9, -3, 0), (2, 3, 7)), (X,)),
    Case("dynamic_slice", "in dim", lambda x: lax.dynamic_slice_in_dim(x, 2, 2, axis=1), (X,)),
    Case(
        "dynamic_update_slice",
        "one axis",
        lambda x, y: lax.dynamic_update_slice(x, y[:, :2], (0, 1, 0)),
        (X, Y),
    ),
    Case(
        "dynamic_update_slice",
        "front",
        lambda x, y: lax.dynamic_update_slice(x, y[:, :2], (0, 0, 0)),
        (X, Y),
    ),
    Case(
        "dynamic_update_slice",
        "two axes",
        lambda x, y: lax.dynamic_update_slice(x, y[:, :2, :3], (0, 1, 4)),
        (X, Y),
    ),
    Case(
        "dynamic_update_slice",
        "all axes",
        lambda x, y: lax.dynamic_update_slice(x, y[:1, :2, :3], (1, 1, 2)),
        (X, Y),
    ),
    Case(
        "dynamic_update_slice",
        "whole",
        lambda x, y: lax.dynamic_update_slice(x, y, (0, 0, 0)) + x,
        (X, Y),
    ),
    Case(
        "dynamic_update_slice",
        "weight",
        lambda x: lax.dynamic_update_slice(x, np.zeros((3, 1, 7), np.float32), (0, 2, 0)),
        (X,),
    ),
    Case("scatter", "set a row", lambda x: jnp.asarray(x).at[1].set(2.5), (X,)),
    Case("scatter", "set a column", lambda x, y: jnp.asarray(x).at[:, 2].set(y), (X, Y[:, 0])),
    Case(
        "scatter",
        "set one element",
        lambda x, y: jnp.asarray(x).at[1, 2, 3].set(y),
        (X, Y[0, 0, 0]),
    ),
    Case("scatter-add", "add to a row", lambda x, y: jnp.asarray(x).at[:, -1].add(y), (X, Y[:, 0])),
]
_JOIN = [
    *(
        Case(
            "concatenate",
            f"axis {axis}",
            lambda x, y, a=axis: jnp.concatenate([x, y, x], axis=a),
            (X, Y),
        )
        for axis in (0, 1, 2)
    ),
    Case("concatenate", "uneven", lambda x, y: jnp.concatenate([x[:, :2], y], axis=1), (X, Y)),
    Case(
        "concatenate",
        "weight",
        lambda x: jnp.concatenate([np.ones((3, 1, 7), np.float32), x], axis=1),
        (X,),
    ),
    Case("concatenate", "empty part", lambda x: jnp.concatenate([x[:, :0], x], axis=1) * 2, (X,)),
    Case("concatenate", "rank 1", lambda x, y: jnp.concatenate([x, y]), (normal(5), normal(7))),
    Case("concatenate", "int32", lambda x: jnp.concatenate([x, x + 1]), (I,)),
    Case(
        "concatenate",
        "broadcast part",
        lambda x, y: jnp.concatenate([jnp.broadcast_to(x, (3, 2, 7)), y], axis=1),
        (X[:, :1], Y),
    ),
    Case("concatenate", "roll", lambda x: jnp.roll(x, 2, axis=1), (X,)),
    Case(
        "concatenate",
        "edge padding",
        lambda x: jnp.pad(x, ((0, 0), (2, 1), (0, 0)), mode="edge"),
        (X,),
    ),
    Case(
        "concatenate",
        "many",
        lambda x: jnp.concatenate([x + i for i in range(70)], axis=1),
        (normal(2, 1),),
    ),
    Case("stack", "first axis", lambda x, y: jnp.stack([x, y]), (X, Y)),
    Case(
        "stack",
        "last axis",
        lambda x, y: jnp.stack([x, y], axis=-1),
        (normal(3, 5), normal(3, 5, seed=1)),
    ),
    Case("stack", "rank 0", lambda x: jnp.stack([x[0], x[2], x[1]]), (normal(3),)),
    Case("pad", "back", lambda x: jnp.pad(x, ((0, 0), (0, 4), (0, 1))), (X,)),
    Case(
        "pad", "front", lambda x: jnp.pad(x, ((0, 0), (2, 0), (0, 0)), constant_values=-1.5), (X,)
    ),
    Case("pad", "all round", lambda x: jnp.pad(x, 1), (X,)),
    Case(
        "pad",
        "negative",
        lambda x: lax.pad(x, np.float32(0), [(0, 0, 0), (-1, 2, 0), (1, -2, 0)]),
        (X,),
    ),
    Case("pad", "int32", lambda x: jnp.pad(x, ((1, 0), (0, 2)), constant_values=3), (I,)),
    Case(
        "pad",
        "bool",
        lambda x: jnp.pad(x, ((1, 0), (0, 2)), constant_values=True),
        (booleans(3, 5),),
    ),
    Case("pad", "rank 1", lambda x: jnp.pad(x, (2, 3)), (normal(7),)),
    Case("pad", "rank 5", lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0), (2, 0))), (DEEP,)),
    Case("rev", "last axis", lambda x: jnp.flip(x, -1), (X,)),
    Case("rev", "first axes", lambda x: jnp.flip(x, (0, 1)), (X,)),
    Case("rev", "int32", lambda x: x[::-1], (I,)),
    Case("rev", "rank 1", lambda x: x[::-1], (normal(7),)),
]
_FOLDED = [
    Case("iota", "arange", lambda x: x + jnp.arange(7.0), (normal(7),)),
    Case(
        "iota",
        "mask",
        lambda x: jnp.where(jnp.arange(5)[:, None] >= jnp.arange(7)[None], x, 0),
        (normal(5, 7),),
    ),
    Case("iota", "tril", lambda x: jnp.tril(x), (normal(5, 7),)),
    Case("iota", "one hot", lambda i: jax.nn.one_hot(i, 6), (integers(5, low=0),)),
    Case("iota", "eye", lambda x: x @ jnp.eye(7), (normal(5, 7),)),
    Case(
        "function", "zeros part", lambda x: jnp.concatenate([x, jnp.zeros((2, 7))]), (grid(5, 7),)
    ),
    Case("function", "zero size", lambda x: jnp.sum(x[:0], axis=0) + x[0], (grid(5, 7),)),
]

CASES = [*_RESHAPE, *_TRANSPOSE, *_BROADCAST, *_SLICE, *_JOIN, *_FOLDED]
