"""Random small JAX programs, lowered under every policy, compute what JAX computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

from lowering.api import lower_graph_of
from lowering.backends.reference import run
from lowering.ir import Policy
from lowering.trace import trace
from tests.lowering.rules.cases.base import normal

POLICIES: tuple[Policy, ...] = ("float32", "bfloat16", "bfloat8_b")
SIZES = (1, 2, 3, 5, 7)
Draw = Callable[[st.SearchStrategy], Any]
Step = tuple[Callable[..., Any], tuple[int, ...], str]

# every function is smooth and bounded in growth, so that errors stay near rounding
UNARY = {
    "abs": jnp.abs,
    "cos": jnp.cos,
    "cube": lambda x: lax.integer_pow(jnp.tanh(x), 3),
    "erf": lax.erf,
    "exp": lambda x: jnp.exp(-jnp.abs(x)),
    "identity": lambda x: x,
    "jit": jax.jit(lambda x: jnp.sin(x) * 0.5),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "logistic": lax.logistic,
    "neg": jnp.negative,
    "relu": jax.nn.relu,
    "remat": jax.checkpoint(lambda x: jnp.tanh(x) + 1),
    "rsqrt": lambda x: lax.rsqrt(jnp.abs(x) + 0.5),
    "silu": jax.nn.silu,
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x) + 0.25),
    "square": lambda x: jnp.square(jnp.tanh(x)),
    "stop_gradient": lax.stop_gradient,
}
BINARY = {
    "add": jnp.add,
    "div": lambda a, b: a / (1 + jnp.abs(b)),
    "max": jnp.maximum,
    "min": jnp.minimum,
    "mul": lambda a, b: jnp.tanh(a) * b,
    "select": lambda a, b: jnp.where(a > 0.1234, a, b),
    "select_n": lambda a, b: jnp.where((a > 0.3) & ~(b < -0.2), b * 0.5, -1.5),
    "sub": jnp.subtract,
}
REDUCE = {
    "max": jnp.max,
    "mean": jnp.mean,
    "min": jnp.min,
    "any": lambda x, **k: jnp.any(x > 0.5, **k).astype(jnp.float32),
    "count": lambda x, **k: jnp.sum(x > 0.5, **k) / 4,
    "var": jnp.var,
}
ALONG = {
    "cumsum": lambda x, axis: jnp.cumsum(jnp.tanh(x), axis),
    "flip": jnp.flip,
    "softmax": jax.nn.softmax,
    "sort": jnp.sort,
    "roll": lambda x, axis: jnp.roll(x, 1, axis),
    "first": lambda x, axis: lax.slice_in_dim(x, 0, (x.shape[axis] + 1) // 2, axis=axis),
    "last": lambda x, axis: lax.dynamic_slice_in_dim(x, x.shape[axis] // 2, 1, axis),
    "pad": lambda x, axis: jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)]),
    "double": lambda x, axis: jnp.concatenate([x, x * 0.5], axis),
    "stack": lambda x, axis: jnp.stack([x, -x], axis),
    "repeat": lambda x, axis: jnp.repeat(x, 2, axis),
    "top": lambda x, axis: lax.top_k(jnp.moveaxis(x, axis, -1), 1)[0],
    "one hot": lambda x, axis: jax.nn.one_hot(jnp.argmax(x, axis), x.shape[axis]),
    "scan": lambda x, axis: lax.scan(
        lambda c, row: (jnp.tanh(c + row), c),
        jnp.zeros_like(jnp.take(x, 0, axis)),
        jnp.moveaxis(x, axis, 0),
    ),
}


@dataclass
class Builder:
    """Values so far, and the steps that made them from the inputs."""

    inputs: tuple[np.ndarray, ...]
    values: list[Any] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self):
        self.values = list(self.inputs)

    def add(self, name: str, function: Callable[..., Any], *operands: int) -> None:
        """Append the leaves of a function of earlier values."""
        self.steps.append((function, operands, name))
        self.values += jax.tree.leaves(function(*(self.values[i] for i in operands)))

    def replay(self, *inputs: Any) -> list[Any]:
        """The last values, of other inputs."""
        values = list(inputs)
        for function, operands, _ in self.steps:
            values += jax.tree.leaves(function(*(values[i] for i in operands)))
        return values[-3:]


def axis_of(draw: Draw, x) -> int:
    return draw(st.integers(0, x.ndim - 1))


def unary(draw: Draw, builder: Builder, i: int) -> None:
    name = draw(st.sampled_from(sorted(UNARY)))
    builder.add(name, UNARY[name], i)


def binary(draw: Draw, builder: Builder, i: int) -> None:
    """With a scalar, a weight, or another value broadcast where it fits."""
    name, x = draw(st.sampled_from(sorted(BINARY))), builder.values[i]
    function = BINARY[name]
    kind = draw(st.sampled_from(["scalar", "weight", "row", "value"]))
    if kind == "scalar":
        number = draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.25]))
        builder.add(f"{name} {number}", lambda a: function(a, jnp.full_like(a, number)), i)
        return
    if kind in ("weight", "row") and x.ndim:
        shape = x.shape if kind == "weight" else (1,) * (x.ndim - 1) + x.shape[-1:]
        weight = normal(*shape, seed=len(builder.steps))
        builder.add(f"{name} {kind}", lambda a: function(a, jnp.broadcast_to(weight, a.shape)), i)
        return
    fitting = [j for j, y in enumerate(builder.values) if fits(y.shape, x.shape)]
    j = draw(st.sampled_from(fitting))
    builder.add(name, lambda a, b: function(a, jnp.broadcast_to(b, a.shape)), i, j)


def fits(small: Sequence[int], large: Sequence[int]) -> bool:
    try:
        return np.broadcast_shapes(small, large) == tuple(large)
    except ValueError:
        return False


def reduction(draw: Draw, builder: Builder, i: int) -> None:
    x = builder.values[i]
    if not x.ndim:
        return
    name = draw(st.sampled_from(sorted(REDUCE)))
    axes = tuple(sorted(draw(st.sets(st.integers(0, x.ndim - 1), min_size=1, max_size=2))))
    keep = draw(st.booleans())
    builder.add(name, lambda a: REDUCE[name](a, axis=axes, keepdims=keep), i)


def along(draw: Draw, builder: Builder, i: int) -> None:
    x = builder.values[i]
    if not x.ndim or x.size > 400:
        return
    name, axis = draw(st.sampled_from(sorted(ALONG))), axis_of(draw, x)
    builder.add(f"{name} {axis}", lambda a: ALONG[name](a, axis=axis), i)


def product(draw: Draw, builder: Builder, i: int) -> None:
    """With a weight (and a bias), or with itself over any axis."""
    x = builder.values[i]
    if not x.ndim:
        return
    axis = axis_of(draw, x)
    if draw(st.booleans()):
        width = draw(st.sampled_from(SIZES))
        weight = normal(x.shape[axis], width) / x.shape[axis] ** 0.5
        bias = normal(width, seed=1)
        builder.add(
            f"dense {axis}",
            lambda a: jnp.add(
                y := jnp.tensordot(a, weight, (axis, 0)), jnp.broadcast_to(bias, y.shape)
            ),
            i,
        )
        return
    letters = "abcde"[: x.ndim]
    equation = f"{letters},{letters}->{letters[:1]}"
    if x.ndim < 4:
        equation = f"{letters},{letters.replace(letters[axis], 'z')}->{letters}z"
    builder.add(equation, lambda a: jnp.einsum(equation, jnp.tanh(a), jnp.tanh(a)) / 4, i)


def movement(draw: Draw, builder: Builder, i: int) -> None:
    x = builder.values[i]
    kind = draw(st.sampled_from(["transpose", "reshape", "expand", "index", "broadcast"]))
    if kind == "transpose":
        order = tuple(draw(st.permutations(range(x.ndim))))
        builder.add(f"transpose {order}", lambda a: jnp.transpose(a, order), i)
    elif kind == "reshape":
        shape = (-1,) if draw(st.booleans()) or not x.ndim else (x.shape[0], -1)
        builder.add(f"reshape {shape}", lambda a: a.reshape(shape), i)
    elif kind == "expand" and x.ndim < 5:
        axis = draw(st.integers(0, x.ndim))
        builder.add(f"expand {axis}", lambda a: jnp.expand_dims(a, axis), i)
    elif kind == "index" and x.ndim:
        axis = axis_of(draw, x)
        positions = np.arange(x.shape[axis])[::-2].copy()
        builder.add(f"take {axis}", lambda a: jnp.take(a, positions, axis), i)
    elif kind == "broadcast" and x.ndim < 4:
        builder.add("broadcast", lambda a: jnp.broadcast_to(a, (3, *a.shape)), i)


KINDS = (unary, unary, binary, binary, reduction, along, product, movement)


@st.composite
def programs(draw) -> Builder:
    ranks = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    shapes = [tuple(draw(st.sampled_from(SIZES)) for _ in range(rank)) for rank in ranks]
    builder = Builder(tuple(normal(*shape, seed=i) for i, shape in enumerate(shapes)))
    for _ in range(draw(st.integers(3, 12))):
        kind = draw(st.sampled_from(KINDS))
        kind(draw, builder, draw(st.integers(0, len(builder.values) - 1)))
    return builder


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(programs())
def test_random_programs(builder):
    expected = [np.asarray(value) for value in builder.replay(*builder.inputs)]
    inputs = {f"x{i}": array for i, array in enumerate(builder.inputs)}
    graph = trace(lambda _, *arrays: builder.replay(*arrays), None, inputs)
    scale = max(1.0, *(np.abs(np.asarray(value)).max(initial=0) for value in builder.values))
    for policy in POLICIES:
        program = lower_graph_of(graph, name="p", policy=policy, arch="wormhole_b0").program
        for found, wanted in zip(run(program, inputs), expected, strict=True):
            assert found.shape == wanted.shape
            assert np.abs(found - wanted).max(initial=0) <= 2e-5 * scale, str(program)
        run(program, inputs, "device")
