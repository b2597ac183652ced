"""Tracing: regions verified, calls taken apart, known values folded, sources kept."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowering import lower
from lowering.errors import LoweringError
from lowering.graph import Graph, Known, Node, Tensor, evaluate
from lowering.trace import trace
from moejax.layers.linear import linear
from moejax.layers.mixture import time_router
from moejax.layers.softmax import softmax, top_k_softmax
from moejax.regions import region
from tests.lowering.rules.cases.base import normal

X, W, B = normal(3, 5), normal(5, 7), normal(7)


@region("test.trace.choose")
def choose(x, weights, *, low):
    """A body that calls the same jitted helper twice, on arguments with structure."""
    first, (second,) = weights["pair"]
    return jnp.where(x > low, x * first, 0.0) + jnp.where(x < -low, second, x)


@region("test.trace.precise", float32=True)
def precise(x):
    return jnp.sum(jnp.exp(x), axis=-1, keepdims=True)


@region("test.trace.matrix_only")
def matrix_only(x):
    if x.ndim != 2:
        raise RuntimeError(f"expected a matrix, got {x.shape}")
    return x * 2


def of(function, *inputs, params=None) -> Graph:
    named = {f"x{index}": array for index, array in enumerate(inputs)}
    return trace(
        lambda p, *arrays: function(*arrays) if params is None else function(p, *arrays),
        params,
        named,
    )


def names(graph: Graph) -> list[str]:
    return [node.primitive for node in graph.nodes]


def golden(graph: Graph, *inputs) -> np.ndarray:
    arrays = evaluate(graph, {f"x{index}": array for index, array in enumerate(inputs)})
    (result,) = graph.results
    return arrays[id(result)]


class TestRegions:
    def test_plain_use_is_one_node_with_its_attributes_and_body(self):
        graph = of(lambda x: linear(x, W, B, activation="relu"), X)
        (node,) = graph.nodes
        assert node.primitive == "moejax.linear"
        assert node.params == {"activation": "relu"}
        assert node.region is not None
        assert node.body is not None
        assert "dot_general" in names(node.body)
        np.testing.assert_allclose(golden(graph, X), np.maximum(X @ W + B, 0), rtol=1e-5)

    @pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
    def test_calls_around_a_region_change_nothing(self, wrap):
        assert names(of(wrap(lambda x: linear(x, W, B)), X)) == ["moejax.linear"]

    def test_arguments_come_back_in_their_structure(self):
        weights = {"pair": (normal(3, 5), (normal(3, 5, seed=1),))}
        graph = of(lambda x: choose(x, weights, low=0.5), X)
        (node,) = graph.nodes
        x, rebuilt = node.region.arguments(node.inputs)
        assert isinstance(x, Tensor)
        first, (second,) = rebuilt["pair"]
        np.testing.assert_array_equal(first.numpy(), weights["pair"][0])
        np.testing.assert_array_equal(second.numpy(), weights["pair"][1][0])

    def test_vmap_takes_the_region_apart(self):
        graph = of(jax.vmap(lambda x: linear(x, W, B)), normal(2, 3, 5))
        assert "moejax.linear" not in names(graph)
        assert "dot_general" in names(graph)
        x = normal(2, 3, 5)
        np.testing.assert_allclose(golden(graph, x), x @ W + B, rtol=1e-4, atol=1e-5)

    def test_grad_takes_the_region_apart(self):
        def loss(x):
            return jnp.sum(jnp.square(softmax(x, axis=-1)))

        graph = of(jax.grad(loss), X)
        assert "moejax.softmax" not in names(graph)
        np.testing.assert_allclose(golden(graph, X), jax.grad(loss)(X), rtol=1e-4, atol=1e-6)

    def test_a_region_that_refuses_the_batched_shape_is_taken_apart(self):
        graph = of(jax.vmap(lambda x: matrix_only(x)), normal(2, 3, 5))
        assert names(graph) == ["mul"]

    @pytest.mark.parametrize("wrap", [lambda f: f, jax.vmap])
    def test_precision_is_kept_when_taken_apart(self, wrap):
        graph = of(wrap(lambda x: precise(x) * 2.0), normal(2, 3, 5))
        inside = [node for node in graph.nodes if node.primitive != "mul"]
        assert inside
        assert all(node.source.float32 for node in inside)
        (outside,) = [node for node in graph.nodes if node.primitive == "mul"]
        assert not outside.source.float32

    def test_regions_nest(self):
        mark, hidden, output = normal(3, 4), normal(4, 6), normal(6, 6)
        graph = of(
            lambda m: time_router(m, hidden, normal(6), output, normal(6), num_experts=3), mark
        )
        (node,) = graph.nodes
        assert node.primitive == "moejax.time_router"
        inner = [n.primitive for n in node.body.nodes if n.region is not None]
        assert inner == ["moejax.linear", "moejax.linear", "moejax.softmax"]
        assert all(n.source.float32 for n in node.body.nodes)

    def test_another_body_under_the_same_name_is_no_region(self):
        def other(x, kernel, bias):
            return x @ kernel - bias[None]

        other.__name__ = other.__qualname__ = "moejax.linear[activation=None]"
        linear(X, W, B)
        graph = of(lambda x: jax.jit(other)(x, W, B), X)
        assert "moejax.linear" not in names(graph)
        np.testing.assert_allclose(golden(graph, X), X @ W - B, rtol=1e-4, atol=1e-5)

    def test_a_region_of_known_values_is_folded(self):
        graph = of(lambda x: x + softmax(W, axis=0)[:3, :5], X)
        assert names(graph) == ["add"]

    def test_a_region_inside_scan_is_found_at_every_step(self):
        graph = of(lambda x: lax.scan(lambda c, row: (c, softmax(row, axis=-1)), 0.0, x)[1], X)
        assert names(graph).count("moejax.softmax") == 3

    def test_same_region_with_other_shapes(self):
        graph = of(lambda x, y: (top_k_softmax(x, k=2), top_k_softmax(y, k=3)), X, normal(4, 9))
        assert [node.params["k"] for node in graph.nodes] == [2, 3]


class TestFolding:
    def test_parameters_are_evaluated_and_keep_their_name(self):
        params = {"layer": {"kernel": W, "scale": normal(7)}}

        def function(p, x):
            return x @ (p["layer"]["kernel"].T.reshape(7, 5).T * 2)

        graph = of(function, X, params=params)
        (node,) = graph.nodes
        assert node.primitive == "dot_general"
        known = node.inputs[1]
        assert isinstance(known, Known)
        assert known.name == "layer.kernel"
        np.testing.assert_allclose(known.numpy(), W * 2)

    def test_two_parameters_have_no_common_name(self):
        graph = of(lambda p, x: x * (p["a"] + p["b"]), X, params={"a": X, "b": X + 1})
        (node,) = graph.nodes
        assert node.inputs[1].name == ""

    def test_python_numbers_are_parameters_too(self):
        graph = of(lambda p, x: x * p["scale"], X, params={"scale": 2.5})
        (node,) = graph.nodes
        assert node.inputs[1].numpy() == np.float32(2.5)

    def test_dead_code_and_effects_are_dropped(self):
        def function(x):
            jnp.sin(x)
            jax.debug.callback(lambda _: None, x)
            return x * 2

        assert names(of(function, X)) == ["mul"]

    def test_what_is_empty_is_known(self):
        graph = of(lambda x, y: jnp.concatenate([x, y, x[:0] * 2]), X, X[:0])
        (node,) = graph.nodes
        assert [isinstance(operand, Known) for operand in node.inputs] == [False, True, True]
        assert list(graph.inputs) == ["x0", "x1"]


class TestControl:
    def test_scan_is_unrolled_and_reverse_is_respected(self):
        def function(x):
            return lax.scan(lambda c, row: (c + row, c), jnp.zeros(5), x, reverse=True)

        graph = of(function, X)
        assert names(graph).count("add") == 3
        carry, ys = (evaluate(graph, {"x0": X})[id(result)] for result in graph.results)
        expected = function(X)
        np.testing.assert_allclose(carry, expected[0], rtol=1e-6)
        np.testing.assert_allclose(ys, expected[1], rtol=1e-6)

    def test_cond_on_a_known_value_is_its_branch(self):
        graph = of(lambda x: lax.cond(np.bool_(False), jnp.sin, jnp.cos, x), X)
        assert names(graph) == ["cos"]

    def test_while_is_refused_with_advice(self):
        with pytest.raises(LoweringError, match="keep the loop on the host"):
            of(lambda x: lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c + 1, x), X)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return jnp.tanh(nn.Dense(4, name="dense")(x))  # the tanh


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Inner(name="inner")(x)


def test_sources_name_module_line_and_primitive():
    model = Outer()
    variables = model.init(jax.random.key(0), X)
    graph = trace(model.apply, variables, {"x": X})
    node = next(node for node in graph.nodes if node.primitive == "tanh")
    lines = Path(__file__).read_text().splitlines()
    (line,) = [i for i, text in enumerate(lines, 1) if text.endswith("# the tanh")]
    assert node.source.module == "Outer/inner"
    assert node.source.line == f"tests/lowering/test_trace.py:{line}"
    assert node.source.primitive == "tanh"
    dense = next(node for node in graph.nodes if node.primitive == "dot_general")
    assert dense.source.module == "Outer/inner/dense"
    assert dense.inputs[1].name == "params.inner.dense.kernel"
    program = lower(model.apply, variables, {"x": X})
    assert {op.source.module for op in program.ops} >= {"Outer/inner"}


def test_every_node_gives_what_jax_says():
    """The golden value of each node has the node's shape and dtype."""
    model = Outer()
    variables = model.init(jax.random.key(0), X)
    graph = trace(model.apply, variables, {"x": X})
    arrays = evaluate(graph, {"x": X})

    def check(node: Node) -> None:
        for output in node.outputs:
            assert arrays[id(output)].shape == output.shape
            assert arrays[id(output)].dtype == output.dtype

    for node in graph.nodes:
        check(node)
    np.testing.assert_allclose(arrays[id(graph.results[0])], model.apply(variables, X), rtol=1e-5)
