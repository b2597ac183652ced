"""Speed of Chronos forecasts: a random model of the shape of chronos-t5-tiny in float32.

What counts is CPU seconds, of all threads, the least of some rounds; the figures to beat are those
of the published pipeline with torch 2.13 on two threads, as recorded.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from moejax.forecasting.chronos.generate import encode
from moejax.forecasting.chronos.pipeline import ChronosPipeline
from moejax.interop.chronos import initial
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config
from train.bench import Row

PARAMETERS = 8_394_496
# CPU seconds of the published pipeline by batch, and how many times as fast is wanted
RECORDED = {"encode": {1: 0.063, 8: 0.63}, "predict": {1: 1.48, 8: 8.4}}
TARGETS = {"encode": 1.3, "predict": 3.0}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The shape, the task, and how often each case is timed."""

    t5: T5Config = field(default_factory=lambda: T5Config(initializer_factor=1.0))
    chronos: ChronosConfig = field(default_factory=ChronosConfig)
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 7


SIZES = Sizes()


def measure(say: Callable[[str], Any] = print, sizes: Sizes = SIZES) -> list[Row]:
    """All rows of the suite."""
    config = ChronosModelConfig(t5=sizes.t5, chronos=sizes.chronos)
    variables = jax.jit(lambda: initial(config, jax.random.key(0)))()
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert sizes != SIZES or count == PARAMETERS, count
    pipeline = ChronosPipeline(config, variables)
    rows = []
    for batch in sizes.batches:
        series = np.random.default_rng(batch).standard_normal(
            (batch, config.chronos.context_length)
        )
        tokens = pipeline.tokenizer.context(series.cumsum(axis=1))
        cases = {
            "encode": lambda tokens=tokens: jax.block_until_ready(
                encode(config, variables, tokens.ids, tokens.mask)
            ),
            "predict": lambda series=series: pipeline.predict(series),
        }
        for name, run in cases.items():
            say(f"{name}, batch {batch}")
            cpu, wall = _least_seconds(run, sizes.rounds)
            rows += _rows(name, batch, cpu, wall, sizes)
    return rows


def _rows(name: str, batch: int, cpu: float, wall: float, sizes: Sizes) -> list[Row]:
    chronos = sizes.chronos
    what = f"{chronos.context_length} values"
    if name == "predict":
        what += f" -> {chronos.prediction_length} steps, {chronos.num_samples} samples"
    judged = sizes == SIZES
    published = RECORDED[name][batch] if judged else None
    return [
        Row(
            name=f"{name}_{batch}",
            metric=f"{what}, batch {batch}: per CPU second",
            value=batch / cpu,
            unit="series/s",
            baseline=batch / published if published else None,
            target=TARGETS[name] if judged else None,
            of_baseline=True,
        ),
        Row(name=f"{name}_{batch}_cpu", metric=f"{what}, batch {batch}", value=cpu, unit="CPU s"),
        Row(name=f"{name}_{batch}_wall", metric=f"{what}, batch {batch}", value=wall, unit="s"),
    ]


def _least_seconds(run: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """(CPU, wall) seconds of a call, after one that compiles."""
    run()
    cpu, wall = [], []
    for _ in range(rounds):
        started = time.process_time(), time.perf_counter()
        run()
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    return min(cpu), min(wall)
