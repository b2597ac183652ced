"""Arithmetic, comparison, selection and conversion, element by element."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.lowering.rules.cases.base import Case, booleans, grid, integers, normal, positive

SHAPE = (3, 5, 7)

_UNARY = [
    ("abs", lax.abs, normal),
    ("ceil", lax.ceil, grid),
    ("cos", lax.cos, normal),
    ("erf", lax.erf, normal),
    ("erfc", lax.erfc, normal),
    ("exp", lax.exp, normal),
    ("exp2", lax.exp2, normal),
    ("expm1", lax.expm1, normal),
    ("floor", lax.floor, grid),
    ("is_finite", lax.is_finite, normal),
    ("log", lax.log, positive),
    ("log1p", lax.log1p, positive),
    ("log2", lambda x: lax.log2(x), positive),
    ("logistic", lax.logistic, normal),
    ("neg", lax.neg, normal),
    ("rsqrt", lax.rsqrt, positive),
    ("sign", lax.sign, grid),
    ("sin", lax.sin, normal),
    ("sqrt", lax.sqrt, positive),
    ("square", lax.square, normal),
    ("tanh", lax.tanh, normal),
]
_BINARY = [
    ("add", lax.add, normal, normal),
    ("div", lax.div, normal, positive),
    ("eq", lax.eq, grid, grid),
    ("ge", lax.ge, grid, grid),
    ("gt", lax.gt, grid, grid),
    ("le", lax.le, grid, grid),
    ("lt", lax.lt, grid, grid),
    ("max", lax.max, normal, normal),
    ("min", lax.min, normal, normal),
    ("mul", lax.mul, normal, normal),
    ("ne", lax.ne, grid, grid),
    ("pow", lax.pow, positive, normal),
    ("rem", lax.rem, grid, lambda *s, seed: np.abs(grid(*s, seed=seed)) + 0.5),
    ("sub", lax.sub, normal, normal),
]


def _binary(name, function, left, right) -> list[Case]:
    # rounded exponents and cancelling terms count for more than the rounding of the result
    bounds = {"bfloat16": 0.015} if name in ("pow", "sub", "add") else {}
    a, b = left(*SHAPE, seed=1), right(*SHAPE, seed=2)
    row, column = right(7, seed=3), left(3, 1, 1, seed=4)
    one = np.float32(1.25)
    return [
        Case(name, "scalar right", lambda x: function(x, jnp.full_like(x, one)), (a,), **bounds),
        Case(name, "scalar left", lambda x: function(jnp.full_like(x, one), x), (b,), **bounds),
        Case(name, "weight", lambda x: function(x, jnp.broadcast_to(row, x.shape)), (a,), **bounds),
        Case(
            name,
            "broadcast",
            lambda x, y: function(jnp.broadcast_to(x, y.shape), y),
            (column, b),
            **bounds,
        ),
        Case(name, "tensors", function, (a, b), **bounds),
        Case(name, "rank 0", function, (a[0, 0, 0], b[0, 0, 0]), **bounds),
    ]


def _constrained(x):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("one",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("one"))
    return lax.with_sharding_constraint(x, spec) * 2


_INTEGER = ("add", "eq", "ge", "gt", "le", "lt", "max", "min", "mul", "ne", "rem", "sub")


def _integer(name) -> list[Case]:
    function = getattr(lax, name)
    a, b = integers(3, 5), integers(3, 5, low=1, seed=1)
    return [
        Case(name, "int32", function, (a, b)),
        Case(name, "int32 scalar", lambda x: function(x, jnp.full_like(x, 2)), (a,)),
    ]


def _logical(name, function) -> list[Case]:
    a, b = booleans(3, 5), booleans(3, 5, seed=1)
    return [
        Case(name, "bool", function, (a, b)),
        Case(name, "weight", lambda x: function(x, b), (a,)),
        Case(
            name, "comparisons", lambda x, i: function(x > 0, i < 2), (grid(3, 5), integers(3, 5))
        ),
    ]


_X, _Y, _P = grid(3, 5, 7, seed=1), normal(3, 5, 7, seed=2), booleans(3, 5, 7)
_SELECT = [
    ("tensors", jnp.where, (_P, _X, _Y)),
    ("true scalar", lambda p, y: jnp.where(p, 1.5, y), (_P, _Y)),
    ("false scalar", lambda p, x: jnp.where(p, x, -np.inf), (_P, _X)),
    ("scalars", lambda p: jnp.where(p, 2.0, -1.0), (_P,)),
    ("weights", lambda x: jnp.where(_P, x, _Y), (_X,)),
    ("computed", lambda x, y: jnp.where(x > 0, x, y), (_X, _Y)),
    ("row condition", lambda p, x: jnp.where(p[None, None], x, 0.0), (_P[0, 0], _X)),
    ("scalar condition", lambda p, x, y: lax.select(p, x, y), (_P[0, 0, 0], _X, _Y)),
    ("all smaller", lambda p, x: jnp.where(p, 1.0, x), (_P[:, :1], _X[:1])),
    ("int32", jnp.where, (_P, integers(3, 5, 7), integers(3, 5, 7, seed=1))),
    ("int32 scalar", lambda p, x: jnp.where(p, x, 3), (_P, integers(3, 5, 7))),
    ("int32 scalars", lambda p: jnp.where(p, 2, -3), (_P,)),
    ("int32 condition", lambda i, x: jnp.where(i > 0, x, 0.5), (integers(3, 5, 7), _X)),
    ("bool", jnp.where, (_P, booleans(3, 5, 7, seed=1), booleans(3, 5, 7, seed=2))),
    ("rank 0", lambda x, y: jnp.where(x > 0, x, y), (_X[0, 0, 0], _Y[0, 0, 0])),
    ("known condition", lambda x, y: jnp.where(np.full(x.shape, True), x, y), (_X, _Y)),
]

_LOW, _HIGH = np.float32(-0.5), np.float32(1.25)
_OTHER = [
    *(Case("select_n", *row) for row in _SELECT),
    Case("clamp", "scalars", lambda x: lax.clamp(_LOW, x, _HIGH), (_Y,)),
    Case("clamp", "tensors", lambda a, x, b: lax.clamp(a, x, b), (_X - 1, _Y, _X + 1)),
    Case("clamp", "one scalar", lambda x, b: lax.clamp(jnp.zeros_like(x), x, b), (_Y, _X + 2)),
    Case("clamp", "computed bound", lambda x, b: lax.clamp(_LOW, x, b), (_Y, np.float32(0.75))),
    Case("clamp", "int32", lambda x: lax.clamp(-2, x, 3), (integers(3, 5),)),
    *(
        Case(
            "integer_pow",
            f"y {y}",
            functools.partial(lax.integer_pow, y=y),
            (positive(3, 5),),
            bfloat16=0.01,
        )
        for y in (-2, -1, 2, 3, 5, 8)
    ),
    Case("integer_pow", "int32", lambda x: lax.integer_pow(x, 3), (integers(3, 5),)),
    Case("round", "to even", lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), (_X,)),
    Case("round", "jnp", jnp.round, (_X * 2,)),
    Case("one_minus_square", "tanh derivative", jax.vmap(jax.grad(jnp.tanh)), (normal(7),)),
    Case("add_any", "two uses", jax.grad(lambda x: jnp.sum(jnp.sin(x) * jnp.cos(x))), (normal(7),)),
    Case("abs", "int32", lax.abs, (integers(3, 5),)),
    Case("neg", "int32", lax.neg, (integers(3, 5),)),
    Case("sign", "int32", lax.sign, (integers(3, 5),)),
    Case("square", "int32", jnp.square, (integers(3, 5),)),
    Case("not", "bool", jnp.logical_not, (_P,)),
    Case("not", "comparison", lambda x: ~(x > 0), (_X,)),
    Case("max", "relu", lambda x: jnp.maximum(x, 0), (_Y,)),
    Case("max", "minus infinity", lambda x: jnp.maximum(x, -jnp.inf), (_Y,)),
    Case("mul", "one", lambda x: x * 1.0, (_Y,)),
    Case("mul", "device scalar", lambda x, s: x * s, (_Y, np.float32(1.75))),
    Case("sub", "scalar first", lambda s, x: s - x, (np.float32(1.75), _X)),
    Case("convert_element_type", "float to int32", lambda x: x.astype(jnp.int32), (_X * 3,)),
    Case(
        "convert_element_type",
        "int32 to float",
        lambda x: x.astype(jnp.float32) / 3,
        (integers(3, 5),),
    ),
    Case(
        "convert_element_type", "bool to float", lambda x: (x > 0).astype(jnp.float32) * 2.5, (_X,)
    ),
    Case("convert_element_type", "bool to int32", lambda x: (x > 0).astype(jnp.int32) + 1, (_X,)),
    Case("convert_element_type", "float to bool", lambda x: x.astype(bool), (_X,)),
    Case("convert_element_type", "int32 to bool", lambda x: x.astype(bool), (integers(3, 5),)),
    Case(
        "convert_element_type", "half", lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), (_X,)
    ),
    Case(
        "convert_element_type",
        "int32 to uint32",
        lambda x: x.astype(jnp.uint32) + 1,
        (integers(3, 5, low=0),),
    ),
    Case("stop_gradient", "inside", lambda x: lax.stop_gradient(x) * 2, (_X,)),
    Case("copy", "jnp", jnp.copy, (_X,)),
    Case("reduce_precision", "bfloat16", lambda x: lax.reduce_precision(x, 8, 7), (_X,)),
    Case(
        "optimization_barrier", "two", lambda x, y: lax.optimization_barrier((x * 2, y)), (_X, _Y)
    ),
    Case("sharding_constraint", "one device", _constrained, (_X,)),
]

CASES = [
    *(Case(name, "normal", f, (make(*SHAPE),)) for name, f, make in _UNARY),
    *(Case(name, "rank 0", f, (make(1)[0],)) for name, f, make in _UNARY),
    *(case for row in _BINARY for case in _binary(*row)),
    *(case for name in _INTEGER for case in _integer(name)),
    *(
        case
        for row in (("and", lax.bitwise_and), ("or", lax.bitwise_or), ("xor", lax.bitwise_xor))
        for case in _logical(*row)
    ),
    *_OTHER,
]
