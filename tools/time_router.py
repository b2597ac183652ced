"""Time the fused router against the plain one, after checking that they agree. Needs a GPU.

python tools/time_router.py [--json FILE] [--only TEXT] [--backward]

Prints a row a case: median milliseconds of both, ratio, target. All cases take several minutes,
most of which go into compiling those that are checked.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path

import jax

from moejax.kernels.router_cases import (
    RouterCase,
    benchmark_cases,
    disagreements,
    equality_cases,
    timing_loop,
)

TARGET = 3.0
SEEDS, LOOPS, REPEATS = 4, 10, 5


def milliseconds(case: RouterCase, implementation, backward: bool) -> float:
    """Median time of one routing."""
    run = timing_loop(case, implementation, seeds=SEEDS, loops=LOOPS, backward=backward)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times) / (SEEDS * LOOPS)


def agree(case: RouterCase) -> bool:
    """Whether the implementations agree; on random logits a near tie may be decided either way."""
    far = disagreements(case)
    limits = {"weight": 2e-6, "scores": 2e-6, "gradient": 1e-5, "other_choice": 3}
    if case.dtype == "bfloat16":
        limits["gradient"] = 2e-2
    if case.on_grid:
        limits["other_choice"] = 0
    wrong = {name: value for name, value in far.items() if value > limits.get(name, 0)}
    if wrong:
        print(f"{case.name}: {wrong}")
    return not wrong


def row(case: RouterCase, backward: bool) -> dict:
    """One line of the benchmark's JSON."""
    plain, fused = (milliseconds(case, name, backward) for name in ("xla", "pallas"))
    return {
        "name": f"router_{case.name}" + ("_backward" if backward else ""),
        "metric": "time",
        "value": fused,
        "unit": "ms",
        "baseline": plain,
        "ratio": plain / fused,
        "target": TARGET,
        "ok": plain / fused >= TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="check and time what contains this")
    parser.add_argument("--backward", action="store_true", help="time gradients too")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
    if jax.default_backend() != "gpu":
        parser.exit(2, "no GPU: the kernels would be interpreted, and not timed\n")
    cases = [case for case in benchmark_cases() if options.only in case.name]
    others = [case for case in equality_cases(3000) if options.only in case.name]
    checked = [agree(case) for case in others + cases]
    print(f"{jax.devices()[0].device_kind}: {sum(checked)} of {len(checked)} cases agree")
    rows = []
    for backward in [False, True][: 1 + options.backward]:
        for case in cases:
            rows.append(row(case, backward))
            line = "{name:48s} xla {baseline:8.4f} ms  pallas {value:8.4f} ms  {ratio:5.2f}x"
            print(line.format(**rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    parser.exit(0 if all(checked) and all(r["ok"] for r in rows) else 1)


if __name__ == "__main__":
    main()
