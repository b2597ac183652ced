"""Times tiles of the grouped products on the GPU at hand and stores the fastest of each product.

The rows are those of an even routing of the layer's shape. A candidate that the card has no room
for is passed over.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.kernels import grouped, tuning
from moejax.kernels.grouped import ROWS, Implementation, Tiles, make_tiles
from moejax.kernels.tuning import Blocks, Key, Product
from train.benchmarks.gpu_layer import Shape, normal

ROUNDS, CALLS = 5, 4


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The fastest tiles for a product, its seconds and those of the tiles it had, if they ran."""

    blocks: Blocks
    seconds: float
    before: float | None


def tune(
    shapes: list[Shape], say: Callable[[str], Any] = print, tries: int | None = None
) -> dict[Key, Tuned]:
    """Tune every product of layers of these shapes, write the file. ValueError without kernels.

    `tries`: candidates of a product at most.
    """
    kernels = grouped.kernels_here()
    if kernels is None:
        raise ValueError("there is nothing to tune: no kernels of the grouped products serve here")
    found: dict[Key, Tuned] = {}
    for shape in shapes:
        for key, run in products(shape, kernels).items():
            if key not in found:
                say(f"tuning {key.text}")
                found[key] = _best(key, run, tuning.candidates(kernels)[:tries])
    tuning.store({key: one.blocks for key, one in found.items()})
    return found


def products(shape: Shape, kernels: Implementation) -> dict[Key, Callable[[Blocks], Any]]:
    """The kernels that a layer and its gradient call: what runs each with given tiles."""
    each = -(-shape.tokens * shape.top_k // shape.experts // ROWS)
    count_E = jnp.full((shape.experts,), max(each, 1), jnp.int32)
    tiles = make_tiles(count_E, int(count_E.sum()) * ROWS)
    rows, experts = len(tiles.expert) * ROWS, shape.experts
    wide, narrow = normal(0, (rows, shape.width), 1.0), normal(1, (rows, shape.hidden), 1.0)
    gate, up = (normal(seed, (experts, shape.width, shape.hidden), 0.02) for seed in (2, 3))
    down = normal(4, (experts, shape.hidden, shape.width), 0.02)
    run_rows = partial(_run_rows, kernels, tiles)
    run_weights = partial(_run_weights, kernels, tiles)
    cases: tuple[tuple[Product, int, int, Callable[..., Any]], ...] = (
        ("swiglu", shape.width, shape.hidden, partial(run_rows, wide, (gate, up))),
        ("plain", shape.hidden, shape.width, partial(run_rows, narrow, (down,))),
        ("transposed", shape.width, shape.hidden, partial(run_rows, wide, (down,))),
        ("transposed", shape.hidden, shape.width, partial(run_rows, narrow, (gate,))),
        ("weights", shape.width, shape.hidden, partial(run_weights, wide, narrow)),
        ("weights", shape.hidden, shape.width, partial(run_weights, narrow, wide)),
    )
    return {
        Key(
            kernels=kernels, product=product, contracted=contracted, width=width, experts=experts
        ): partial(run, product)
        for product, contracted, width, run in cases
    }


def _run_rows(kernels, tiles: Tiles, x, matrices, product: str, blocks: Blocks):
    return grouped.rows_kernel_of(kernels)(
        x,
        matrices,
        tiles.expert,
        tiles.used,
        blocks=blocks,
        transposed=product == "transposed",
        keep=product == "swiglu",
    )


def _run_weights(kernels, tiles: Tiles, x, y, product: str, blocks: Blocks):
    return grouped.weights_kernel_of(kernels)(x, y, tiles.first, tiles.count, blocks=blocks)


def _best(key: Key, run: Callable[[Blocks], Any], candidates: tuple[Blocks, ...]) -> Tuned:
    before = tuning.lookup(key)
    seconds: dict[Blocks, float] = {}
    for blocks in dict.fromkeys((before, *candidates)):
        try:
            seconds[blocks] = _seconds(partial(run, blocks))
        except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError):
            continue
    if not seconds:
        raise ValueError(f"no tiles can be run for {key.text}")
    fastest = min(seconds, key=lambda blocks: seconds[blocks])
    return Tuned(
        blocks=fastest,
        seconds=seconds[fastest],
        before=seconds.get(before),
    )


def _seconds(run: Callable[[], Any]) -> float:
    """Median seconds of a call over rounds of CALLS calls, compiled before."""
    jax.block_until_ready(run())
    times = []
    for _ in range(ROUNDS):
        started, results = time.perf_counter(), None
        for _ in range(CALLS):
            results = run()
        jax.block_until_ready(results)
        times.append((time.perf_counter() - started) / CALLS)
    return statistics.median(times)
