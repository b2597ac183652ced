"""What users write: functions of jnp and jax.nn, and Flax modules with their parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.lowering.rules.cases.base import Case, booleans, grid, integers, normal, positive

X, Y = normal(3, 5, 8), normal(3, 5, 8, seed=1)
IDS = integers(3, 5, low=0, high=11)
MASK = booleans(3, 1, 5, 5) | np.eye(5, dtype=bool)[None, None]


def _function(name: str, function, *inputs, **bounds) -> Case:
    return Case("function", name, function, inputs, **bounds)


def _module(name: str, module: nn.Module, *inputs, **bounds) -> Case:
    variables = jax.jit(module.init)(jax.random.key(0), *inputs)
    return _function(name, lambda *args: module.apply(variables, *args), *inputs, **bounds)


class Block(nn.Module):
    """A small transformer block."""

    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x), mask=MASK)
        x = x + y
        y = nn.Dense(16)(nn.RMSNorm()(x))
        return x + nn.Dense(8)(nn.gelu(y))


def _half_precision(x):
    product = x.astype(jnp.bfloat16) @ normal(8, 6).astype(jnp.bfloat16)
    return product.astype(jnp.float32)


class Shared(nn.Module):
    """One Dense used twice."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(8)
        return dense(nn.relu(dense(x)))


_FUNCTIONS = [
    _function("var", lambda x: jnp.var(x, axis=1), X),
    _function("var ddof", lambda x: jnp.var(x, axis=(0, 1), ddof=1), X),
    _function("std", lambda x: jnp.std(x, axis=-1, keepdims=True), X),
    _function("mean", lambda x: jnp.mean(x, axis=(0, 2)), X + 1),
    _function("where mask", lambda x, m: jnp.where(m, x, -1e9), X, booleans(3, 5, 8)),
    _function("mean where", lambda x, m: jnp.mean(x, axis=1, where=m), X + 1, booleans(3, 5, 8)),
    _function("one_hot", lambda i: jax.nn.one_hot(i, 11), IDS),
    _function(
        "einsum path",
        lambda x, y: jnp.einsum("bsd,btd,bt->bs", x, y, y[:, :, 0]),
        X,
        Y,
        bfloat16=0.02,
    ),
    _function("einsum diagonal", lambda x: jnp.einsum("bij->bji", x) @ x, X),
    _function("clip", lambda x: jnp.clip(x, -0.5, 0.5), X),
    _function("roll", lambda x: jnp.roll(x, (1, 2), axis=(0, 2)), X),
    _function("flip", lambda x: jnp.flip(x, 2), X),
    _function("logsumexp", lambda x: jax.nn.logsumexp(x, axis=-1), X),
    _function("softmax", lambda x: jax.nn.softmax(x, axis=-1), X),
    _function(
        "softmax where", lambda x, m: jax.nn.softmax(x, axis=-1, where=m), X, booleans(3, 5, 8)
    ),
    _function("log_softmax", lambda x: jax.nn.log_softmax(x, axis=1), X),
    _function("silu", jax.nn.silu, X),
    _function("gelu tanh", jax.nn.gelu, X, bfloat16=0.012),
    _function("gelu exact", lambda x: jax.nn.gelu(x, approximate=False), X, bfloat16=0.012),
    _function("softplus", jax.nn.softplus, X),
    _function("sigmoid", jax.nn.sigmoid, X),
    _function("log_sigmoid", jax.nn.log_sigmoid, X),
    _function("elu", jax.nn.elu, X),
    _function("leaky_relu", jax.nn.leaky_relu, X),
    _function("relu6", jax.nn.relu6, X * 4),
    _function("hard_swish", jax.nn.hard_swish, X * 2, bfloat16=0.012),
    _function("mish", jax.nn.mish, X, bfloat16=0.012),
    _function("glu", jax.nn.glu, X),
    _function("logaddexp", jnp.logaddexp, X, Y),
    _function("mod", lambda x: jnp.mod(x, 1.5), grid(3, 5)),
    _function("remainder of int32", lambda i: i % 4, integers(3, 5)),
    _function("floor", lambda x: jnp.floor(x / 0.5), grid(3, 5)),
    _function("sign and abs", lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x)), X),
    _function("hypot", lambda x, y: jnp.sqrt(x**2 + y**2), X, Y),
    _function("power", lambda x: x**0.75, positive(3, 5), bfloat16=0.01),
    _function("exp2", jnp.exp2, X),
    _function("linspace", lambda x: x * jnp.linspace(0, 1, 8)[None, None], X),
    _function("outer", lambda x, y: jnp.outer(x, y), X[0, 0], Y[0, 0]),
    _function("dot of vectors", jnp.dot, X[0, 0], Y[0, 0], bfloat16=0.02),
    _function("norm", lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), X),
    _function("triu mask", lambda x: jnp.where(jnp.triu(jnp.ones((5, 5), bool)), x @ x.T, 0), X[0]),
    _function(
        "cumulative mean", lambda x: jnp.cumsum(x, 1) / jnp.arange(1, 6)[None, :, None], X + 1
    ),
    _function("diff", lambda x: jnp.diff(x, axis=1), X),
    _function("swapaxes", lambda x: jnp.swapaxes(x, 0, 2), X),
    _function("isfinite mask", lambda x: jnp.where(jnp.isfinite(x), x, 0.0), X),
    _function("select", lambda x: jnp.select([x < -1, x > 1], [-x, x * 2], 0.0), grid(3, 5)),
    _function("heaviside", lambda x: (x >= 0).astype(jnp.float32), grid(3, 5)),
    _function(
        "scaled attention",
        lambda q, k: jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / 8**0.5) @ k,
        X,
        Y,
        bfloat16=0.012,
    ),
    _function("bfloat16 compute", _half_precision, X, exact=0.01, bfloat16=0.01),
    _function(
        "dot_product_attention",
        lambda q, k: jax.nn.dot_product_attention(q, k, k, is_causal=True),
        normal(2, 5, 4, 8),
        normal(2, 5, 2, 8),
        bfloat16=0.012,
    ),
]
_MODULES = [
    _module("Dense", nn.Dense(6), X),
    _module("Dense without bias", nn.Dense(6, use_bias=False), X),
    _module("Dense of a vector", nn.Dense(6), X[0, 0]),
    _module(
        "Dense and relu", nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(3)]), X, bfloat16=0.012
    ),
    _module("Dense shared", Shared(), X, bfloat16=0.012),
    _module("DenseGeneral", nn.DenseGeneral((2, 4)), X),
    _module("DenseGeneral axes", nn.DenseGeneral(6, axis=(-2, -1)), X),
    _module("Einsum", nn.Einsum((8, 2, 3), "bsd,dnh->bsnh"), X),
    _module("LayerNorm", nn.LayerNorm(), X, bfloat16=0.02),
    _module("RMSNorm", nn.RMSNorm(), X, bfloat16=0.012),
    _module("GroupNorm", nn.GroupNorm(num_groups=2), X, bfloat16=0.02),
    _module("Embed", nn.Embed(11, 8), IDS),
    _module(
        "MultiHeadDotProductAttention",
        nn.MultiHeadDotProductAttention(num_heads=2),
        X,
        float32=6e-3,
        bfloat16=0.02,
    ),
    _module("transformer block", Block(), X, bfloat16=0.02),
    _module("Dropout off", nn.Dropout(0.5, deterministic=True), X),
    _module("PReLU", nn.PReLU(), X),
]

CASES = [*_FUNCTIONS, *_MODULES]
