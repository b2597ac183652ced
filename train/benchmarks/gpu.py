"""Speed of the MoE layer on an NVIDIA GPU, beside PyTorch's grouped_mm and one dense SwiGLU.

FLOPs are those of the experts' matmuls, 2 for a multiply-add, 3 times as many with gradients. The
PyTorch layer, tools/torch_moe.py, runs in a process of its own before JAX takes the GPU, by the
Python that MOEJAX_TORCH_PYTHON names or else by this one; where that has no torch the rows have no
baseline. The targets are for Hopper GPUs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from train.bench import Row
from train.benchmarks import gpu_checks, gpu_layer, gpu_scaling, gpu_step, gpu_tune
from train.benchmarks.gpu_layer import PASSES, SAID, Measured, Shape

SCRIPT = Path(__file__).parents[2] / "tools" / "torch_moe.py"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A shape, and the least speed as a multiple of PyTorch's by pass."""

    shape: Shape
    targets: dict[str, float]


JUDGED = {
    "olmoe": Judged(
        shape=Shape(tokens=16384, width=2048, hidden=1024, experts=64, top_k=8),
        targets={"forward": 1.4, "both": 1.3},
    ),
    "mixtral": Judged(
        shape=Shape(tokens=8192, width=4096, hidden=14336, experts=8, top_k=2),
        targets={"forward": 1.05, "both": 1.05},
    ),
}
# share of the dense SwiGLU's speed
AIMS = {"forward": 0.95, "both": 0.88}
# weak scaling, by the number of GPUs
SCALING = {2: 0.90, 4: 0.85}
MEMORY_TARGET = 1.3
ERROR_TARGET = 1e-2


def measure(
    say: Callable[[str], Any] = print,
    judged: dict[str, Judged] | None = None,
    *,
    tune: bool = False,
) -> list[Row]:
    """All rows of the suite, those of tiles first where they are to be tuned. ValueError without
    a GPU that has the kernels.
    """
    judged = JUDGED if judged is None else judged
    say("measuring PyTorch")
    torch = run_torch([one.shape for one in judged.values()])
    gpu_layer.require_kernels()
    rows = tune_rows([one.shape for one in judged.values()], say) if tune else []
    for name, one in judged.items():
        for which in PASSES:
            say(f"measuring {name}, {SAID[which]}")
            found = gpu_layer.measure(one.shape, which)
            rows += _rows(name, one, which, found, torch.get(one.shape.sizes))
    say("comparing with float64")
    for case in gpu_checks.CASES:
        rows += [_error_row(case.name, *pair) for pair in gpu_checks.errors(case).items()]
    devices = jax.device_count()
    if devices > 1:
        for name, one in judged.items():
            say(f"measuring {name} on {devices} GPUs")
            rows += scaling_rows(name, one.shape, devices)
    say("measuring a training step")
    rows += step_rows(gpu_step.default_step())
    return rows


def tune_rows(shapes: list[Shape], say: Callable[[str], Any]) -> list[Row]:
    """Milliseconds of every product with the fastest tiles, beside the tiles it had."""
    return [
        Row(
            name=f"tune_{key.product}_{key.contracted}x{key.width}x{key.experts}",
            metric=f"product with {one.blocks}",
            value=one.seconds * 1e3,
            unit="ms",
            baseline=None if one.before is None else one.before * 1e3,
        )
        for key, one in gpu_tune.tune(shapes, say).items()
    ]


def step_rows(step: gpu_step.Step) -> list[Row]:
    """Utilisation in a training step, and the shares of the kinds of its kernels."""
    found = gpu_step.measure(step)
    use = Row(
        name="step_use",
        metric=f"model FLOPs of a training step against the peak, {found.seconds * 1e3:.0f} ms,"
        f" {step.model.num_layers} layers, {step.rows} x {step.length} tokens",
        value=100 * step.flops / found.seconds / gpu_step.PEAK,
        unit="%",
    )
    shares = [
        Row(name=f"step {kind}", metric="share of the kernels' time", value=100 * share, unit="%")
        for kind, share in found.shares.items()
    ]
    return [use, *shares]


def scaling_rows(name: str, shape: Shape, devices: int) -> list[Row]:
    """Time on one GPU over that on several, with as many tokens a GPU; and the difference."""
    rows = []
    for which in PASSES:
        found = gpu_scaling.measure(shape, which, devices)
        rows.append(
            Row(
                name=f"{name}_{which}_on_{devices}",
                metric=f"weak scaling of the layer, {SAID[which]}, {found.together * 1e3:.2f} ms",
                value=found.alone / found.together,
                unit="of ideal",
                target=SCALING.get(devices) if name == "olmoe" else None,
            )
        )
    error = gpu_scaling.difference(shape, devices)
    return [*rows, _error_row(f"{name}_on_{devices}", "output", error, "one GPU's result")]


def run_torch(shapes: list[Shape]) -> dict[tuple[int, ...], dict[str, float]]:
    """Milliseconds by shape and pass; empty without torch."""
    python = os.environ.get("MOEJAX_TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode:
        return {}
    texts = [",".join(str(size) for size in shape.sizes) for shape in shapes]
    done = subprocess.run([python, str(SCRIPT), *texts], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{SCRIPT.name} failed: {done.stderr.strip().splitlines()[-1:]}")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {shape.sizes: line for shape, line in zip(shapes, found, strict=True)}


def _rows(
    name: str, judged: Judged, which: str, found: Measured, torch: dict[str, float] | None
) -> list[Row]:
    shape = judged.shape
    flops = shape.flops * (1 if which == "forward" else 3) / 1e12
    speed = Row(
        name=f"{name}_{which}",
        metric=f"layer, {SAID[which]}, against PyTorch grouped_mm, {shape.text}",
        value=flops / found.seconds,
        unit="TFLOP/s",
        baseline=None if torch is None else flops / torch[which] * 1e3,
        target=None if torch is None else judged.targets[which],
        of_baseline=True,
    )
    dense = replace(
        speed,
        name=f"{name}_{which}_dense",
        metric=f"the same against one dense SwiGLU of the same work; the aim is {AIMS[which]}",
        baseline=flops / found.dense_seconds,
        target=None,
    )
    memory = Row(
        name=f"{name}_{which}_memory",
        metric="largest memory in use against inputs, outputs and what is saved for the gradient",
        value=found.peak_bytes / 2**20,
        unit="MiB",
        baseline=found.kept_bytes / 2**20,
        target=MEMORY_TARGET if which == "both" else None,
        of_baseline=True,
        at_most=True,
    )
    return [speed, dense, memory]


def _error_row(case: str, what: str, error: float, against: str = "float64") -> Row:
    return Row(
        name=f"error_{case}_{what}",
        metric=f"relative Frobenius error against {against}",
        value=error,
        unit="",
        target=ERROR_TARGET,
        at_most=True,
    )
