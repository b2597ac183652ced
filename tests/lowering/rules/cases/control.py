"""Calls, custom derivatives, loops and branches: what tracing takes apart."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.lowering.rules.cases.base import Case, grid, integers, normal

X, W = normal(5, 7), normal(7, 7) * 0.3


@jax.custom_jvp
def cube(x):
    return x * x * x


@cube.defjvp
def _cube_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return cube(x), 3 * x * x * t


@jax.custom_vjp
def clipped(x):
    return jnp.clip(x, -1, 1)


clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (g,))


def _recurrent(x):
    def step(carry, row):
        carry = jnp.tanh(row @ W + carry)
        return carry, carry * 2

    return lax.scan(step, jnp.zeros(7), x)


def _layers(x):
    weights = normal(3, 7, 7) * 0.3
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]


def _reverse(x):
    return lax.scan(lambda c, row: (c + row, c), jnp.zeros(7), x, reverse=True)


def _no_steps(x):
    return lax.scan(lambda c, row: (c + row, c), x[0], x[:0])


def _branch(x):
    return lax.cond(np.bool_(True), lambda x: x + 1, lambda x: x - 1, x)


def _switch(x):
    return lax.switch(np.int32(2), [lambda x: x, lambda x: 2 * x, lambda x: 3 * x], x)


def _known_while(x):
    return x * lax.while_loop(lambda n: n < 5, lambda n: n * 2, 1)


def _loss(x):
    return jnp.mean(jnp.square(jnp.tanh(x @ W)))


def _printing(x):
    jax.debug.callback(lambda _: None, x)
    return x * 2


CASES = [
    Case("jit", "call", jax.jit(lambda x: jnp.sin(x) + 1), (X,)),
    Case("jit", "nested", lambda x: jax.jit(jax.jit(jnp.tanh))(x) * 2, (X,)),
    Case("custom_jvp_call", "cube", cube, (X,), bfloat16=0.008),
    Case("custom_jvp_call", "relu", jax.nn.relu, (X,)),
    Case("custom_vjp_call", "clipped", clipped, (X,)),
    Case("remat2", "checkpoint", jax.checkpoint(lambda x: jnp.tanh(x @ W)), (X,)),
    Case(
        "custom_vjp_call",
        "custom_gradient",
        jax.custom_gradient(lambda x: (x * 2, lambda g: g)),
        (X,),
    ),
    Case("scan", "recurrent", _recurrent, (X,), bfloat16=0.012),
    Case("scan", "layers", _layers, (X,), bfloat16=0.012),
    Case("scan", "reverse", _reverse, (X,), bfloat16=0.012),
    Case("scan", "no steps", _no_steps, (X,)),
    Case(
        "scan",
        "fori_loop",
        lambda x: lax.fori_loop(0, 3, lambda i, c: c * x + i, x),
        (X,),
        bfloat16=0.02,
    ),
    Case(
        "scan",
        "map",
        lambda x: lax.map(lambda row: row / jnp.sum(jnp.abs(row)), x),
        (X,),
        bfloat16=0.01,
    ),
    Case("cond", "known predicate", _branch, (X,)),
    Case("cond", "switch", _switch, (X,)),
    Case("while", "known operands", _known_while, (X,)),
    Case("function", "vmap", jax.vmap(lambda row: W @ row), (X,)),
    Case("function", "grad", jax.grad(_loss), (X,), bfloat16=0.02),
    Case(
        "jit",
        "random with a known key",
        lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
        (X,),
    ),
    Case(
        "function",
        "debug print",
        _printing,
        (X,),
    ),
    Case("function", "result is an input", lambda x: x, (X,)),
    Case(
        "function", "result is a constant", lambda x: (x * 2, jnp.arange(5), np.float32(1.5)), (X,)
    ),
    Case("function", "the same result twice", lambda x: (x + 1, x + 1, x), (X,)),
    Case("function", "unused input", lambda x, y: x * 2, (X, X)),
    Case(
        "function",
        "pytree result",
        lambda x: {"a": x * 2, "b": (x > 0, integers(3))},
        (grid(5, 7),),
    ),
    Case("function", "zero size input", lambda x, y: jnp.concatenate([x, y]), (X, X[:0])),
]
