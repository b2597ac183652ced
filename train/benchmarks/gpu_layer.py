"""The whole MoE layer in bfloat16 and one dense SwiGLU of the same work, timed in turns.

The layer is MoELayer as a model uses it, router and all, without capacity. Gradients are those of
the tokens, the experts' weights and the router. The dense SwiGLU has one expert's weights and
T * k rows.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from moejax.kernels.grouped import ROWS, why_not
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer

PASSES = ("forward", "both")
SAID = {"forward": "forward", "both": "forward+backward"}
ROUNDS, CALLS = 7, 5


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a layer with SwiGLU experts."""

    tokens: int
    width: int
    hidden: int
    experts: int
    top_k: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.tokens, self.width, self.hidden, self.experts, self.top_k

    @property
    def flops(self) -> int:
        """Useful work of a forward pass."""
        return self.tokens * self.top_k * 3 * 2 * self.width * self.hidden

    @property
    def saved_bytes(self) -> int:
        """What the forward pass keeps for the gradient: a row, its gate and up, in bfloat16."""
        rows = (self.tokens * self.top_k // ROWS + self.experts) * ROWS
        return 2 * rows * (self.width + 2 * self.hidden)

    @property
    def text(self) -> str:
        return "T {}, D {}, F {}, E {}, k {}".format(*self.sizes)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Median seconds of the layer and of the dense SwiGLU; bytes that the layer uses and needs."""

    seconds: float
    dense_seconds: float
    peak_bytes: int
    kept_bytes: int


def require_kernels() -> None:
    """ValueError where the kernels cannot run."""
    tiny = jnp.zeros((1, 1, 1), jnp.bfloat16)
    obstacle = why_not(tiny[0], {"gate": tiny, "up": tiny, "down": tiny})
    if obstacle is not None:
        raise ValueError(f"`moejax bench gpu` measures a dispatch that {obstacle}")


def measure(shape: Shape, which: str) -> Measured:
    """Time the layer next to the dense SwiGLU, and read off how much memory it uses."""
    layer, arguments = make_layer(shape)
    compiled = jax.jit(passes(layer, which)).lower(*arguments).compile()
    dense, dense_arguments = make_dense(shape)
    dense_compiled = jax.jit(passes(dense, which)).lower(*dense_arguments).compile()
    seconds, dense_seconds = time_turns(
        lambda: compiled(*arguments), lambda: dense_compiled(*dense_arguments)
    )
    sizes = compiled.memory_analysis()
    assert sizes is not None  # GPUs tell
    outside = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return Measured(
        seconds=seconds,
        dense_seconds=dense_seconds,
        peak_bytes=outside + sizes.temp_size_in_bytes,
        kept_bytes=outside + (shape.saved_bytes if which == "both" else 0),
    )


def make_layer(
    shape: Shape, rows: int = 1, dispatcher: Callable[..., jax.Array] | None = None
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """(function of parameters and tokens, parameters and tokens in so many rows)."""
    routing = RoutingConfig(num_experts=shape.experts, top_k=shape.top_k)
    config = MoEConfig(d_model=shape.width, d_ff=shape.hidden, routing=routing)
    layer = MoELayer(config, dispatcher=dispatcher)
    x_BSD = normal(0, (rows, shape.tokens // rows, shape.width), 1.0)
    params = jax.eval_shape(layer.init, jax.random.key(0), x_BSD)["params"]
    leaves, tree = jax.tree.flatten(params)
    leaves = [normal(i + 1, leaf.shape, leaf.shape[-2] ** -0.5) for i, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, leaves)
    params["router_kernel"] = params["router_kernel"].astype(jnp.float32)
    return lambda params, x: layer.apply({"params": params}, x), (params, x_BSD)


def make_dense(shape: Shape) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    """The same for one SwiGLU on T * k rows."""
    sizes = {"up": (shape.width, shape.hidden), "down": (shape.hidden, shape.width)}
    sizes["gate"] = sizes["up"]
    params = {name: normal(1, size, size[0] ** -0.5) for name, size in sizes.items()}
    x_AD = normal(0, (shape.tokens * shape.top_k, shape.width), 1.0)

    def dense(params, x):
        # products in bfloat16, sums in float32 within: a float32 result would make those of the
        # backward pass float32
        return (jax.nn.silu(x @ params["gate"]) * (x @ params["up"])) @ params["down"]

    return dense, (params, x_AD)


def passes(function: Callable[..., jax.Array], which: str) -> Callable[..., Any]:
    """The function, or all its gradients for a cotangent that is not constant."""
    if which == "forward":
        return function

    def both(params, x):
        y, pull = jax.vjp(function, params, x)
        return y, pull(x)

    return both


def normal(seed: int, shape: tuple[int, ...], scale: float) -> jax.Array:
    """Random bfloat16 numbers."""
    make = jax.jit(lambda key: jax.random.normal(key, shape, jnp.bfloat16) * scale)
    return make(jax.random.key(seed)).astype(jnp.bfloat16)


def time_turns(*functions: Callable[[], Any]) -> list[float]:
    """Median seconds of a call of each, over rounds of CALLS calls of one after the other."""
    seconds = [[] for _ in functions]
    for index in range(2 + ROUNDS):
        for times, function in zip(seconds, functions, strict=True):
            started, y = time.perf_counter(), None
            for _ in range(CALLS):
                y = function()
            jax.block_until_ready(y)
            if index >= 2:
                times.append((time.perf_counter() - started) / CALLS)
    return [statistics.median(times) for times in seconds]
