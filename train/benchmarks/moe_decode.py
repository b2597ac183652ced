"""Decoding: a few tokens, where reading the chosen experts' weights takes the time.

The baseline is the time that the bytes of the chosen experts would take at the machine's memory
bandwidth. Both sides go over the weights of several layers in turn, more than a cache holds, as a
model does. The bandwidth is the best of several ways to read those weights. From some number of
tokens on arithmetic takes longer than reading, so a second row compares with plain matmuls: each
chosen expert on its share of the rows, its weights in arrays of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.moe.config import RoutingConfig
from moejax.moe.dispatch import choose, dispatch
from moejax.moe.experts import expert_mlp
from moejax.moe.routing import route
from train.bench import Row
from train.benchmarks.pairs import Pair, clock, time_pairs

TARGET = 1.3


@dataclass(frozen=True, kw_only=True)
class Decode:
    """Sizes; `layers` sets of weights are visited in turn."""

    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    width: int = 512
    hidden: int = 1024
    experts: int = 8
    top_k: int = 2
    layers: int = 8
    rounds: int = 9


def measure(sizes: Decode, say: Callable[[str], Any]) -> list[Row]:
    """A row for the bandwidth, then one for each number of tokens."""
    say("compiling the decoding shapes")
    layers = make_layers(sizes)
    reads = {name: _over(jax.jit(read), layers) for name, read in READS.items()}
    steps, matmuls, chosen, names = {}, {}, {}, {}
    experts = [jax.tree.map(lambda leaf, e=e: leaf[e], layers[0]) for e in range(sizes.experts)]
    for tokens in sizes.tokens:
        steps[tokens], chosen[tokens], names[tokens] = make_step(sizes, tokens, layers)
        matmuls[tokens] = make_matmuls(sizes, _rows(sizes, tokens, chosen[tokens]), experts)
    say("measuring the decoding shapes")
    pairs, best = _time(steps, reads, sizes.rounds)
    by_matmuls = {
        tokens: time_pairs({tokens: steps[tokens]}, matmul, rounds=sizes.rounds)[tokens]
        for tokens, matmul in matmuls.items()
    }
    bytes_ = sum(leaf.nbytes for params in layers for leaf in params.values())
    rows = [
        Row(
            name="memory_read",
            metric=f"weights of {len(layers)} layers, {bytes_ / 2**20:.0f} MiB",
            value=bytes_ / best / 1e9,
            unit="GB/s",
        )
    ]
    for tokens, pair in pairs.items():
        rows.append(_row(sizes, tokens, pair, chosen[tokens], names[tokens]))
        rows.append(_matmul_row(sizes, tokens, by_matmuls[tokens], chosen[tokens]))
    return rows


def _row(sizes: Decode, tokens: int, pair: Pair, chosen: int, name: str) -> Row:
    """Milliseconds a layer against its chosen experts' share of the time to read all."""
    share = chosen / sizes.experts
    return Row(
        name=f"decode_{tokens}",
        metric=f"{tokens} tokens by {name}, {chosen} of {sizes.experts} experts, against reading"
        " their weights",
        value=pair.seconds / sizes.layers * 1e3,
        unit="ms",
        baseline=pair.baseline_seconds * share / sizes.layers * 1e3,
        paired=float(np.median(pair.wall / (pair.baseline_wall * share))),
        target=TARGET if jax.default_backend() == "cpu" else None,
        of_baseline=True,
        at_most=True,
    )


def _matmul_row(sizes: Decode, tokens: int, pair: Pair, chosen: int) -> Row:
    """Milliseconds a layer against those of plain matmuls on as many rows."""
    share = chosen / sizes.experts * sizes.layers
    return Row(
        name=f"decode_{tokens}_matmuls",
        metric=f"{tokens} tokens against plain matmuls on {_rows(sizes, tokens, chosen)} rows for"
        f" each of {chosen} experts",
        value=pair.seconds / sizes.layers * 1e3,
        unit="ms",
        baseline=pair.baseline_seconds * chosen / sizes.experts * 1e3,
        paired=float(np.median(pair.wall / (pair.baseline_wall * share))),
    )


def _rows(sizes: Decode, tokens: int, chosen: int) -> int:
    """Rows of an expert if the chosen ones share them evenly."""
    return -(-tokens * sizes.top_k // chosen)


def make_layers(sizes: Decode) -> list[dict[str, jax.Array]]:
    """Weights of the layers."""
    rng = np.random.default_rng(0)
    shape = (sizes.experts, sizes.width, sizes.hidden)
    one = {
        "gate": rng.standard_normal(shape, np.float32) / sizes.width**0.5,
        "up": rng.standard_normal(shape, np.float32) / sizes.width**0.5,
        "down": rng.standard_normal((shape[0], shape[2], shape[1]), np.float32) / sizes.hidden**0.5,
    }
    # own memory for each layer
    return [
        {name: jnp.array(leaf * (1 + layer)) for name, leaf in one.items()}
        for layer in range(sizes.layers)
    ]


def make_step(sizes: Decode, tokens: int, layers: list[Any]) -> tuple[Callable[[], Any], int, str]:
    """A call of the dispatch on every layer, the number of experts chosen, the dispatch's name."""
    config = RoutingConfig(num_experts=sizes.experts, top_k=sizes.top_k)
    keys = jax.random.split(jax.random.key(tokens), 2)
    routing = route(jax.random.normal(keys[0], (tokens, sizes.experts)), config)
    x_TD = jax.random.normal(keys[1], (tokens, sizes.width))
    function = jax.jit(dispatch).lower(x_TD, routing, layers[0]).compile()
    chosen = len(np.unique(np.asarray(routing.index)))
    step = _over(lambda params: function(x_TD, routing, params), layers)
    return step, chosen, choose(routing, jax.default_backend())


def make_matmuls(sizes: Decode, rows: int, experts: list[Any]) -> Callable[[], Any]:
    """A call of every expert's MLP on this many rows."""
    x_RD = jax.random.normal(jax.random.key(rows), (rows, sizes.width))
    function = jax.jit(expert_mlp).lower(x_RD, experts[0]).compile()
    return _over(lambda params: function(x_RD, params), experts)


# ways to read all weights
READS: dict[str, Callable[[dict[str, jax.Array]], Any]] = {
    "sum": lambda params: [jnp.sum(leaf) for leaf in params.values()],
    "largest": lambda params: [jnp.max(leaf) for leaf in params.values()],
}


def _over(function: Callable[[Any], Any], layers: list[Any]) -> Callable[[], Any]:
    return lambda: [function(params) for params in layers]


def _time(steps, reads, rounds: int) -> tuple[dict[int, Pair], float]:
    """Every step next to the quickest way to read, which is found first; and its median seconds."""
    for read in (*reads.values(), *steps.values()):
        clock(read)
    seconds = {name: np.median([clock(read)[0] for _ in range(3)]) for name, read in reads.items()}
    read = reads[min(seconds, key=lambda name: seconds[name])]
    pairs = time_pairs(steps, read, rounds=rounds)
    return pairs, float(np.median(np.concatenate([p.baseline_wall for p in pairs.values()])))
