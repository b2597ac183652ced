"""What users write with jax.nn and Flax becomes one ttnn op, where bfloat16 is asked for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowering import lower
from lowering.backends.reference import run
from lowering.passes.recognise import recognise
from tests.lowering.passes.programs import Tiny, names, unchanged
from tests.lowering.rules.cases.base import normal

X = normal(3, 5, 8) + 1


def ops_of(function, policy="bfloat16") -> list[str]:
    """The ops of a function of X, whose program must compute what JAX does."""
    program = lower(lambda _, x: function(x), None, {"x": X}, policy=policy)
    (found,) = run(program, {"x": X})
    np.testing.assert_allclose(found, function(X), rtol=2e-5, atol=2e-5)
    return names(program)


def trained(module: nn.Module):
    """The module with parameters that are neither ones nor zeros."""
    variables = module.init(jax.random.key(0), X)
    variables = jax.tree.map(lambda a: a + normal(*a.shape) / 4, variables)
    return lambda x: module.apply(variables, x)


def plain_layer_norm(x):
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (jax.nn.silu, ["silu"]),
        (lambda x: jax.nn.sigmoid(x) * x, ["silu"]),
        (lambda x: jax.nn.gelu(x, approximate=False), ["gelu"]),
        (jax.nn.softplus, ["softplus"]),
        (jax.nn.log_sigmoid, ["neg", "softplus", "neg"]),
        (jax.nn.softmax, ["softmax"]),
        (lambda x: jax.nn.softmax(x, axis=1), ["softmax"]),
        (lambda x: jax.nn.softmax(x * 0.5, axis=0), ["multiply", "softmax"]),
        (trained(nn.RMSNorm()), ["rms_norm"]),
        (trained(nn.RMSNorm(use_scale=False)), ["rms_norm"]),
        (trained(nn.LayerNorm()), ["layer_norm"]),
        (plain_layer_norm, ["layer_norm"]),
        (lambda x: x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5), ["rms_norm"]),
        (trained(nn.LayerNorm(use_fast_variance=False)), ["layer_norm"]),
        (trained(nn.LayerNorm(use_bias=False)), ["layer_norm"]),
        (trained(nn.LayerNorm(use_scale=False)), ["layer_norm"]),
        (trained(nn.LayerNorm(use_scale=False, use_bias=False)), ["layer_norm"]),
    ],
)
def test_one_op(function, expected):
    assert ops_of(function) == expected


def test_gelu_with_tanh_is_a_sigmoid_gate():
    assert ops_of(jax.nn.gelu) == ["square", "multiply", "multiply", "add", "multiply", "multiply"]


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.softmax,
        jax.nn.softplus,
        lambda x: jax.nn.gelu(x, approximate=False),
        trained(nn.RMSNorm()),
        trained(nn.LayerNorm()),
    ],
)
def test_float32_stays_as_written(function):
    assert len(ops_of(function, "float32")) > 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.exp(x - jnp.max(x, 1, keepdims=True)) / jnp.sum(jnp.exp(x), 1, keepdims=True),
        lambda x: x * jax.nn.sigmoid(x + 1),
        lambda x: x * jax.lax.rsqrt(jnp.mean(x**2, 1, keepdims=True) + 1e-5),
        lambda x: x * jax.lax.rsqrt(jnp.mean((x + 1) ** 2, -1, keepdims=True) + 1e-5),
        lambda x: x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-5),
        lambda x: (
            (x - jnp.mean(x, 1, keepdims=True))
            * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
        ),
    ],
)
def test_what_only_looks_alike_stays(function):
    assert not {"softmax", "silu", "rms_norm", "layer_norm"} & set(ops_of(function))


def test_mean_of_float32_is_one_op():
    def program(policy, precise):
        p = Tiny(policy)
        total = p.op("sum", p.input(3, 4, 5), dim=(0, 2), keepdim=True, precise=precise)
        return p.done(p.op("divide", total, scalar=15.0, precise=precise))

    assert names(unchanged(recognise, program("float32", False))) == ["mean"]
    assert names(unchanged(recognise, program("bfloat16", True))) == ["mean"]
    assert names(unchanged(recognise, program("bfloat16", False))) == ["sum", "divide"]


def test_another_divisor_is_no_mean():
    p = Tiny()
    total = p.op("sum", p.input(3, 4), dim=1, keepdim=True)
    assert names(unchanged(recognise, p.done(p.op("divide", total, scalar=3.0)))) == [
        "sum",
        "divide",
    ]


def test_parts_that_others_read_are_kept():
    def function(x):
        return jax.nn.silu(x) + jax.nn.sigmoid(x)

    assert sorted(ops_of(function)) == ["add", "sigmoid", "silu"]
