"""The layer over a grid of batches, experts, choices, capacity factors and jitter.

Speed: `MoELayer` in training mode with GELU experts, next to one dense MLP of an expert's size on
B * S * k rows. The experts' and batches' grid runs at one capacity factor without jitter; factors
and jitter vary at one batch and number of experts. What routing does (drops, use of the experts,
entropy) is counted over the whole product, for tokens that share a mean, as those of a model do,
so that some experts are wanted more than others. The timed tokens have no mean: nearly all of their
choices are served, which keeps the comparison with the MLP fair.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.moe.capacity import apply_capacity
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.experts import expert_mlp
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.routing import route, router_logits
from moejax.moe.usage import Usage, usage
from train.bench import Row
from train.benchmarks.pairs import Pair, time_pairs

# deviation of the tokens' mean from 0 over that of a token from the mean
MEAN = 0.3


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Sizes of the grid; the first factor and the first jitter are those of the speeds."""

    batches: tuple[int, ...] = (1, 2, 4)
    length: int = 512
    width: int = 768
    hidden: int = 2048
    experts: tuple[int, ...] = (4, 8, 16)
    choices: tuple[int, ...] = (1, 2)
    factors: tuple[float, ...] = (1.25, 1.0, 2.0)
    jitters: tuple[float, ...] = (0.0, 0.1)
    varied: tuple[int, int] = (2, 8)
    rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of the grid."""

    batch: int
    experts: int
    top_k: int
    factor: float
    jitter: float

    @property
    def name(self) -> str:
        return f"b{self.batch}_e{self.experts}_k{self.top_k}_cf{self.factor:g}_j{self.jitter:g}"


Usages = dict[Point, Usage]
Speeds = dict[tuple[Point, str], Pair]


def measure(grid: Grid, say: Callable[[str], Any]) -> tuple[list[Row], Speeds, Usages]:
    """The rows, the times of each point by pass, and the usage of each point."""
    say("routing the grid")
    usages = route_grid(grid)
    speeds: Speeds = {}
    points = speed_points(grid)
    for index, point in enumerate(points):
        say(f"measuring the grid, {index + 1} of {len(points)}")
        for which in ("forward", "both") if _trained(grid, point) else ("forward",):
            method, baseline = make_layer(grid, point, which), make_mlp(grid, point, which)
            pairs = time_pairs({"layer": method}, baseline, rounds=grid.rounds)
            speeds[point, which] = pairs["layer"]
    rows = [_speed_row(grid, *key, pair) for key, pair in speeds.items()]
    rows += [row for point, found in usages.items() for row in _usage_rows(point, found)]
    return rows, speeds, usages


def speed_points(grid: Grid) -> list[Point]:
    """The points that are timed, each once."""
    factor, jitter = grid.factors[0], grid.jitters[0]
    sizes = itertools.product(grid.experts, grid.choices, grid.batches)
    points = [
        Point(batch=batch, experts=experts, top_k=top_k, factor=factor, jitter=jitter)
        for experts, top_k, batch in sizes
    ]
    batch, experts = grid.varied
    habits = itertools.product(grid.choices, grid.factors, grid.jitters)
    points += [
        Point(batch=batch, experts=experts, top_k=top_k, factor=factor, jitter=jitter)
        for top_k, factor, jitter in habits
    ]
    return list(dict.fromkeys(points))


def all_points(grid: Grid) -> Iterator[Point]:
    """The whole product."""
    sizes = itertools.product(grid.batches, grid.experts, grid.choices)
    for (batch, experts, top_k), factor, jitter in itertools.product(
        sizes, grid.factors, grid.jitters
    ):
        yield Point(batch=batch, experts=experts, top_k=top_k, factor=factor, jitter=jitter)


def route_grid(grid: Grid) -> Usages:
    """The usage at each point, for tokens with a common mean and the router as it starts."""
    found = {}
    mean_D = MEAN * jax.random.normal(jax.random.key(9), (grid.width,))
    for batch, experts, top_k in itertools.product(grid.batches, grid.experts, grid.choices):
        points = [
            point
            for point in all_points(grid)
            if (point.batch, point.experts, point.top_k) == (batch, experts, top_k)
        ]
        x_BSD = make_tokens(grid, batch)
        kernel = make_params(grid, experts)["params"]["router_kernel"]
        x_TD = x_BSD.reshape(-1, grid.width) + mean_D[None]
        found |= zip(points, jax.device_get(_usages(x_TD, kernel, tuple(points))), strict=True)
    return found


@partial(jax.jit, static_argnames="points")
def _usages(x_TD: jax.Array, kernel: jax.Array, points: tuple[Point, ...]) -> list[Usage]:
    found = []
    for point in points:
        config = RoutingConfig(num_experts=point.experts, top_k=point.top_k)
        logits = router_logits(x_TD, kernel, jitter=point.jitter, key=jax.random.key(7))
        wanted = route(logits, config)
        found.append(usage(wanted, apply_capacity(wanted, CapacityConfig(factor=point.factor))))
    return found


def make_tokens(grid: Grid, batch: int) -> jax.Array:
    """[B, S, D] normal values."""
    return jax.random.normal(jax.random.key(batch), (batch, grid.length, grid.width))


def make_module(grid: Grid, point: Point) -> MoELayer:
    """The layer of a point."""
    routing = RoutingConfig(num_experts=point.experts, top_k=point.top_k, input_jitter=point.jitter)
    config = MoEConfig(
        d_model=grid.width,
        d_ff=grid.hidden,
        routing=routing,
        expert="gelu",
        capacity=CapacityConfig(factor=point.factor),
    )
    return MoELayer(config)


_PARAMS: dict[Any, Any] = {}


def make_params(grid: Grid, experts: int) -> Any:
    """The layer's parameters; they depend on nothing else."""
    key = grid, experts
    if key not in _PARAMS:
        _PARAMS.clear()
        point = Point(batch=1, experts=experts, top_k=1, factor=1.0, jitter=0.0)
        init = jax.jit(make_module(grid, point).init)
        _PARAMS[key] = init(jax.random.key(0), make_tokens(grid, 1)[:, :8])
    return {"params": _PARAMS[key]["params"]}


def make_layer(grid: Grid, point: Point, which: str) -> Callable[[], Any]:
    """The layer at a point, compiled; `both` adds the gradients of parameters and tokens."""
    module, variables = make_module(grid, point), make_params(grid, point.experts)
    x_BSD, key = make_tokens(grid, point.batch), jax.random.key(1)

    def forward(variables: Any, x_BSD: jax.Array) -> Any:
        return module.apply(variables, x_BSD, train=True, rngs={"router": key})

    return _compiled(forward, which, variables, x_BSD)


def make_mlp(grid: Grid, point: Point, which: str) -> Callable[[], Any]:
    """One dense MLP on as many rows as the layer's experts are asked to serve."""
    experts = make_params(grid, point.experts)["params"]["experts"]
    one = jax.tree.map(lambda leaf: leaf[0], experts)
    x_TD = make_tokens(grid, point.batch).reshape(-1, grid.width)
    x_AD = jnp.tile(x_TD, (point.top_k, 1))
    return _compiled(lambda params, x_AD: expert_mlp(x_AD, params), which, one, x_AD)


def _compiled(function: Callable[..., Any], which: str, *arguments: Any) -> Callable[[], Any]:
    def both(*arguments):
        y, pull = jax.vjp(function, *arguments)
        return y, pull(jnp.ones_like(y))

    run = jax.jit(function if which == "forward" else both).lower(*arguments).compile()
    return lambda: run(*arguments)


def _trained(grid: Grid, point: Point) -> bool:
    """Whether forward+backward is timed too: one number of experts is enough."""
    return point.experts == grid.varied[1] and (point.factor, point.jitter) == (
        grid.factors[0],
        grid.jitters[0],
    )


def _speed_row(grid: Grid, point: Point, which: str, pair: Pair) -> Row:
    tokens = point.batch * grid.length / 1e3
    said = "forward" if which == "forward" else "forward+backward"
    return Row(
        name=f"grid_{point.name}_{which}",
        metric=f"layer {said} against a dense MLP on as many rows",
        value=tokens / pair.seconds,
        unit="ktokens/s",
        baseline=tokens / pair.baseline_seconds,
        paired=pair.speed,
    )


def _usage_rows(point: Point, found: Usage) -> list[Row]:
    values = {
        "drop_rate": (100 * found.drop_rate, "%", "choices dropped"),
        "utilisation": (100 * np.mean(found.utilisation), "%", "places that are filled"),
        "imbalance": (found.imbalance, "", "largest load over the mean, minus 1"),
        "load_entropy": (found.load_entropy, "", "entropy of the experts' loads over log E"),
        "router_entropy": (found.router_entropy, "", "mean entropy of a token over log E"),
    }
    return [
        Row(name=f"grid_{point.name}_{name}", metric=metric, value=float(value), unit=unit)
        for name, (value, unit, metric) in values.items()
    ]
