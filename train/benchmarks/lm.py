"""Speed of generation: a random Mixtral of 139.8M parameters in float32, on one core and on two.

Each number of cores has a process of its own, held to as many cores as it has threads. The figures
to beat are those of Hugging Face transformers with torch 2.13 on one thread, as recorded. Prefill
ends with the logits of the last position alone, as transformers' generate computes them.
"""

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from train.bench import Row
from train.benchmarks.cores import run_on
from train.benchmarks.lm_speed import SIZES, Sizes

# tokens/s of transformers on one thread, and how many times as much is wanted
RECORDED = {"prefill_1": 708.0, "prefill_8": 669.0, "decode_1": 43.7, "decode_8": 113.5}
TARGET = 2.0


def measure(
    say: Callable[[str], Any] = print,
    sizes: Sizes = SIZES,
    threads: tuple[int, ...] = (1, 2),
) -> list[Row]:
    """The rows of each number of threads that this machine has cores for."""
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    for number in threads:
        if number <= len(cores):
            say(f"measuring with {number} thread{'s' * (number > 1)}")
            found = run_on(cores[:number], "train.benchmarks.lm_speed", asdict(sizes))
            rows += make_rows(found, sizes, number)
    return rows


def make_rows(found: dict[str, float], sizes: Sizes, threads: int) -> list[Row]:
    """What was measured: the machine's rates, then each case beside what they allow."""
    end = f"_{threads}t"
    rows = [
        Row(name=f"matmul{end}", metric=_SHAPE, value=found["matmul"] / 1e9, unit="GFLOP/s"),
        Row(name=f"read{end}", metric="all weights", value=found["read"] / 1e9, unit="GB/s"),
    ]
    for name in RECORDED:
        kind, batch = name.split("_")
        steps = f"{sizes.prefill} tokens" if kind == "prefill" else f"{sizes.new} tokens"
        after = "" if kind == "prefill" else f" after {sizes.prompt}"
        judged = threads == 1 and sizes == SIZES
        rows.append(
            Row(
                name=f"{name}{end}",
                metric=f"{kind} of {steps}{after}, batch {batch}",
                value=found[name],
                unit="tokens/s",
                baseline=RECORDED[name] if judged else None,
                target=TARGET if judged else None,
                of_baseline=True,
            )
        )
        rows.append(
            Row(
                name=f"{name}{end}_bound",
                metric=_BOUNDS[kind],
                value=found[f"{name}_bound"],
                unit="tokens/s",
            )
        )
    return rows


_SHAPE = "[512, 512] x [512, 1024], float32"
_BOUNDS = {
    "prefill": "the matmuls of every token at the measured rate",
    "decode": "the weights that a step needs at the measured rate of reading",
}
