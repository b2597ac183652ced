"""Speed of generation: a random Mixtral of 139.8M parameters in float32, on one core and on two.

Each number of cores has a process of its own, held to as many cores as it has threads. The figures
to beat are those of Hugging Face transformers with torch 2.13 on one thread, as recorded. Prefill
ends with the logits of the last position alone, as transformers' generate computes them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from train.bench import Row
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
            found = _run(sizes, cores[:number])
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


def _run(sizes: Sizes, cores: list[int]) -> dict[str, float]:
    """What `lm_speed` measures in a process on these cores."""
    flags = os.environ.get("XLA_FLAGS", "")
    if len(cores) == 1:
        flags += " --xla_cpu_multi_thread_eigen=false"
    command = [sys.executable, "-m", "train.benchmarks.lm_speed", json.dumps(asdict(sizes))]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # a child keeps it, and XLA has a thread for each core
    try:
        found = subprocess.run(
            command,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.sched_setaffinity(0, before)
    if found.returncode:
        raise RuntimeError(f"the measuring process failed:\n{found.stderr[-2000:]}")
    return json.loads(found.stdout.splitlines()[-1])
