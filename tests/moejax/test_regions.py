"""Regions run as their plain function under every transformation and mark the trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moejax.models.mole  # noqa: F401  (defines the regions of the layers)
from moejax.regions import all_regions, find_call, region


@region("test.affine", float32=True)
def affine(x, scale, bias=None, *, power=1):
    y = (x * scale["by"]) ** power
    return y if bias is None else y + bias


def jit_names(function, *args) -> list[str]:
    jaxpr = jax.make_jaxpr(function)(*args)
    return [eqn.params["name"] for eqn in jaxpr.eqns if "name" in eqn.params]


def test_body_and_mark():
    x, scale = jnp.arange(3.0), {"by": jnp.asarray(2.0)}
    np.testing.assert_array_equal(affine(x, scale, power=2), (2 * np.arange(3.0)) ** 2)
    (name,) = jit_names(lambda x: affine(x, scale, power=2), x)
    assert name.startswith("test.affine[power=2]")
    call = find_call(name)
    assert call is not None
    assert (call.region.name, call.region.float32, call.attrs) == (
        "test.affine",
        True,
        {"power": 2},
    )


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap, jax.grad])
def test_transformations(wrap):
    def marked(x):
        return affine(x, {"by": jnp.asarray(3.0)}, jnp.asarray(1.0), power=2).sum()

    def plain(x):
        return ((3 * x) ** 2 + 1).sum()

    x = jnp.arange(4.0)
    np.testing.assert_allclose(wrap(marked)(x), wrap(plain)(x), rtol=1e-6)


def test_static_attributes_are_checked():
    with pytest.raises(TypeError, match=r"test\.affine takes \['power'\], not \['root'\]"):
        affine(1.0, {"by": 2.0}, root=2)
    with pytest.raises(TypeError, match="missing a required argument: 'scale'"):
        affine(1.0)
    with pytest.raises(ValueError, match=r"'test\.affine' is already defined"):
        region("test.affine")(lambda x: x)
    with pytest.raises(ValueError, match=r"'test\.open' takes \* or \*\* arguments"):
        region("test.open")(lambda *xs: xs)


def test_an_optional_argument_has_a_tag_of_its_own():
    x, scale = jnp.arange(3.0), {"by": jnp.asarray(2.0)}
    bias = jnp.ones(3)
    short = jit_names(lambda x: affine(x, scale), x)
    long = jit_names(lambda x: affine(x, scale, bias), x)
    assert short != long
    calls = [find_call(names[0]) for names in (short, long)]
    assert [call.structure.num_leaves for call in calls] == [2, 3]
    assert jit_names(lambda x: affine(x, scale, None), x) == short


def test_router_and_statistics_stay_float32():
    float32 = {name for name, marked in all_regions().items() if marked.float32}
    assert {
        "moejax.mixture",
        "moejax.revin_denorm",
        "moejax.revin_norm",
        "moejax.revin_stats",
        "moejax.softmax",
        "moejax.stats_router",
        "moejax.time_router",
        "moejax.top_k_softmax",
    } <= float32
    assert not {"moejax.linear", "moejax.time_linear", "moejax.decomposed_linear"} & float32
