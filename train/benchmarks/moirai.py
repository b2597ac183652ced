"""Speed of MOIRAI-MoE on one core: the published small configuration in float32, random weights.

A context of 512 in patches of 16; the forward pass of 33 tokens, and whole forecasts of 96 steps.
The figures to beat are CPU seconds of the published PyTorch code (torch 2.13, one thread), as
recorded. `share` is what a forecast of 100 samples makes of the machine's rate in a large matmul,
counting the experts, projections and attention of the tokens that it works on, two operations for
a multiply-add.
"""

import os
from collections.abc import Callable
from typing import Any

from moejax.models.moirai_moe import MoiraiMoEConfig
from moejax.models.moirai_moe_sizes import SMALL
from train.bench import Row
from train.benchmarks.cores import run_on
from train.benchmarks.moirai_speed import CONTEXT, HORIZON, PATCH, SQUARE

ROUNDS = 9
# CPU seconds of the published code, and how many times as fast is wanted
RECORDED = {"forward_1": 0.060, "forward_32": 0.430, "forecast_1": 0.355, "forecast_100": 7.0}
TARGET = {"forward_1": 3.0, "forward_32": 1.5, "forecast_100": 3.0}


def measure(say: Callable[[str], Any] = print, rounds: int = ROUNDS) -> list[Row]:
    """The rows of one core."""
    say("measuring on one core")
    core = sorted(os.sched_getaffinity(0))[:1]
    return make_rows(run_on(core, "train.benchmarks.moirai_speed", rounds))


def make_rows(seconds: dict[str, float]) -> list[Row]:
    """What was measured, in calls a CPU second, beside the recorded figures."""
    rows = [
        Row(
            name=name,
            metric=_metric(name),
            value=1 / seconds[name],
            unit="a CPU second",
            baseline=1 / recorded,
            target=TARGET.get(name),
            of_baseline=True,
        )
        for name, recorded in RECORDED.items()
    ]
    rate = 2 * SQUARE**3 / seconds["matmul"]
    share = forecast_flops(SMALL, 100) / seconds["forecast_100"] / rate
    rows.append(Row(name="matmul", metric="float32", value=rate / 1e9, unit="GFLOP/s"))
    rows.append(Row(name="share", metric="forecast_100", value=share, unit="of it"))
    return rows


def _metric(name: str) -> str:
    kind, count = name.split("_")
    if kind == "forward":
        return f"forward, {CONTEXT // PATCH + 1} tokens, batch {count}"
    return f"forecast {CONTEXT} -> {HORIZON}, {count} samples"


def forecast_flops(config: MoiraiMoEConfig, samples: int) -> float:
    """Operations of the steps behind the first one, in which every sample has tokens of its own."""
    width, context, steps = config.d_model, CONTEXT // PATCH, -(-HORIZON // PATCH)
    tokens = context + steps - 1
    attention = 8 * width**2 + 4 * width * tokens
    experts = 6 * config.top_k * width * config.d_ff
    layers = (config.num_layers - 1) * tokens * (attention + experts)
    last = tokens * 4 * width**2 + attention + experts  # keys and values of all, one token read
    return samples * (steps - 1) * (layers + last)
