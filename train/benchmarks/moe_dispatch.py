"""Every dispatch against one dense SwiGLU of the same useful work, on the judged shape.

The baseline is an MLP of one expert's size on T * k rows: what the chosen experts compute, without
routing. A dispatch gets the router's choices and does all the rest: queues, slots, experts, sum.
Gradients are those of the tokens, the experts' weights and the routing weights; the baseline's
those of its rows and weights. FLOPs are those of the matmuls, 2 for a multiply-add.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.moe.assignment import Routing
from moejax.moe.capacity import apply_capacity
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.dispatch import DISPATCH
from moejax.moe.experts import Params, expert_mlp
from moejax.moe.routing import route
from train.bench import Row
from train.benchmarks.pairs import Pair, temporaries, time_pairs

PASSES = ("forward", "both")
SAID = {"forward": "forward", "both": "forward+backward"}
# share of the dense speed, by dispatch and pass; on a CPU
TARGETS = {
    "gather": {"forward": 0.90, "both": 0.78},
    "blockpad": {"forward": 0.95, "both": 0.75},
}
MEMORY_TARGET = 1.5
ONEHOT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The judged shape. `rounds` are for dispatches with a target, `slow_rounds` for the others."""

    tokens: int = 4096
    width: int = 512
    hidden: int = 1024
    experts: int = 8
    top_k: int = 2
    rounds: int = 7
    slow_rounds: int = 1
    others: tuple[str, ...] = ("onehot", "dense", "ragged")

    @property
    def flops(self) -> int:
        """Useful work of a forward pass."""
        return self.tokens * self.top_k * 3 * 2 * self.width * self.hidden

    @property
    def text(self) -> str:
        return (
            f"T {self.tokens}, D {self.width}, F {self.hidden} SwiGLU,"
            f" E {self.experts}, k {self.top_k}"
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """A compiled function, its arguments and the bytes of its temporaries."""

    compiled: Any
    arguments: tuple[Any, ...]
    temporaries: int | None

    def __call__(self) -> Any:
        return self.compiled(*self.arguments)


def measure(shape: Shape, say: Callable[[str], Any]) -> list[Row]:
    """Rows of all dispatches: speed forward and forward+backward, temporaries of both."""
    rows = []
    names = (*TARGETS, *shape.others)
    for which in PASSES:
        say(f"compiling the dispatches, {SAID[which]}")
        baseline = make_baseline(shape, which)
        cases = {name: make_case(shape, name, which) for name in names}
        say(f"measuring the dispatches, {SAID[which]}")
        pairs = time_pairs({name: cases[name] for name in TARGETS}, baseline, rounds=shape.rounds)
        pairs |= time_pairs(
            {name: cases[name] for name in shape.others}, baseline, rounds=shape.slow_rounds
        )
        for name in names:
            rows += _rows(shape, name, which, pairs[name], cases[name], baseline)
    return rows


def make_baseline(shape: Shape, which: str) -> Case:
    """The dense SwiGLU on T * k rows."""
    x_TD, params, _ = make_inputs(shape)
    one = jax.tree.map(lambda leaf: leaf[0], params)
    x_AD = jnp.tile(x_TD, (shape.top_k, 1))
    if which == "forward":
        return _compile(expert_mlp, x_AD, one)
    return _compile(_with_gradient(expert_mlp), x_AD, one)


def make_case(shape: Shape, name: str, which: str) -> Case:
    """A dispatch by name; gather and onehot with their capacity."""
    x_TD, params, routing = make_inputs(shape)

    def forward(x_TD, params, weight_Tk, routing):
        routing = limit(replace(routing, weight=weight_Tk), name)
        return DISPATCH[name](x_TD, routing, params)

    def both(x_TD, params, weight_Tk, routing):
        fixed = partial(forward, routing=routing)
        return _with_gradient(fixed)(x_TD, params, weight_Tk)

    function = forward if which == "forward" else both
    return _compile(function, x_TD, params, routing.weight, routing)


def limit(routing: Routing, name: str) -> Routing:
    """Capacity 1.25 for the dispatches that want places; onehot's by groups of tokens."""
    if name == "gather":
        return apply_capacity(routing, CapacityConfig(factor=1.25))
    if name == "onehot":
        groups = max(len(routing.index) // ONEHOT_TOKENS, 1)
        config = CapacityConfig(factor=1.25, scope="sequence")
        return apply_capacity(routing, config, num_groups=groups)
    return routing


def make_inputs(shape: Shape) -> tuple[jax.Array, Params, Routing]:
    """Tokens, expert weights and a routing that is random and thus nearly even."""
    keys = jax.random.split(jax.random.key(0), 5)
    stack, d, h = shape.experts, shape.width, shape.hidden
    sizes = {"gate": (stack, d, h), "up": (stack, d, h), "down": (stack, h, d)}
    params = {
        name: jax.random.normal(key, size) / size[1] ** 0.5
        for key, (name, size) in zip(keys, sizes.items(), strict=False)
    }
    logits_TE = jax.random.normal(keys[3], (shape.tokens, shape.experts))
    config = RoutingConfig(num_experts=shape.experts, top_k=shape.top_k)
    return jax.random.normal(keys[4], (shape.tokens, d)), params, route(logits_TE, config)


def _with_gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The function's value and all gradients for a cotangent that costs nothing."""

    def both(*arguments):
        y, pull = jax.vjp(function, *arguments)
        return y, pull(jnp.ones_like(y))

    return both


def _compile(function: Callable[..., Any], *arguments: Any) -> Case:
    compiled = jax.jit(function).lower(*arguments).compile()
    return Case(compiled=compiled, arguments=arguments, temporaries=temporaries(compiled))


def _rows(shape: Shape, name: str, which: str, pair: Pair, case: Case, baseline: Case) -> list[Row]:
    judged = name in TARGETS and jax.default_backend() == "cpu"
    flops = shape.flops * (1 if which == "forward" else 3) / 1e9
    speed = Row(
        name=f"{name}_{which}",
        metric=f"{SAID[which]} against a dense SwiGLU, {shape.text}",
        value=flops / pair.seconds,
        unit="GFLOP/s",
        baseline=flops / pair.baseline_seconds,
        paired=pair.speed,
        target=TARGETS[name][which] if judged else None,
        of_baseline=True,
    )
    rows = [speed]
    if judged:
        by_cpu = Row(
            name=f"{name}_{which}_cpu_time",
            metric=f"the same by a second of CPU time, {SAID[which]}",
            value=flops / float(np.median(pair.cpu)),
            unit="GFLOP/s",
            baseline=flops / float(np.median(pair.baseline_cpu)),
            paired=pair.cpu_speed,
        )
        rows.append(by_cpu)
    if case.temporaries is not None and baseline.temporaries:
        memory = Row(
            name=f"{name}_{which}_memory",
            metric=f"temporaries {SAID[which]}",
            value=case.temporaries / 2**20,
            unit="MiB",
            baseline=baseline.temporaries / 2**20,
            target=MEMORY_TARGET if judged else None,
            of_baseline=True,
            at_most=True,
        )
        rows.append(memory)
    return rows
