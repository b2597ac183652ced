"""What of the suite for GPUs runs without one: counts, references, the other process, rows."""

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from moejax.kernels import tuning
from train import bench
from train.benchmarks import gpu, gpu_checks, gpu_layer, gpu_scaling, gpu_step, gpu_tune
from train.benchmarks.gpu_layer import Measured, Shape

TINY = Shape(tokens=16, width=8, hidden=12, experts=4, top_k=2)
# an interpreter that has torch, and prints what the script would
FAKE = """#!/bin/sh
[ "$1" = -c ] && exit 0
shift
for shape in "$@"; do echo "{\\"shape\\": \\"$shape\\", \\"forward\\": 2.0, \\"both\\": 5.0}"; done
"""


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="it would run")
def test_needs_a_gpu(monkeypatch):
    monkeypatch.setenv("MOEJAX_TORCH_PYTHON", "false")
    with pytest.raises(
        ValueError, match="`moejax bench gpu` measures a dispatch that is for NVIDIA"
    ):
        bench.measure("gpu")


def test_torch_runs_elsewhere_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEJAX_TORCH_PYTHON", "false")
    assert gpu.run_torch([TINY]) == {}
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    monkeypatch.setenv("MOEJAX_TORCH_PYTHON", str(python))
    found = gpu.run_torch([TINY, replace(TINY, tokens=32)])
    assert found[32, 8, 12, 4, 2]["shape"] == "32,8,12,4,2"
    assert found[TINY.sizes]["both"] == 5.0


def test_rows_judge_speed_and_memory():
    judged = gpu.Judged(shape=TINY, targets={"forward": 1.4, "both": 1.3})
    found = Measured(seconds=1e-3, dense_seconds=5e-4, peak_bytes=13, kept_bytes=10)
    torch = {"forward": 1.5, "both": 1.2}
    speed, dense, memory = gpu._rows("tiny", judged, "forward", found, torch)
    assert speed.ratio == pytest.approx(1.5)
    assert speed.ok
    assert dense.ratio == pytest.approx(0.5)
    assert memory.ok is dense.ok is None
    speed, _, memory = gpu._rows("tiny", judged, "both", found, torch)
    assert speed.value == pytest.approx(3 * TINY.flops / 1e9)
    assert speed.ok is False
    assert memory.ok
    assert gpu._rows("tiny", judged, "both", found, None)[0].ok is None


@pytest.mark.filterwarnings("ignore:dispatch 'grouped':RuntimeWarning")
def test_float64_reference_is_what_a_dispatch_computes(monkeypatch):
    monkeypatch.setattr(gpu_checks, "POISON_BYTES", 1024)
    case = gpu_checks.Case(name="small", tokens=30, width=16, hidden=24, experts=3, top_k=2)
    found = gpu_checks.errors(case)
    assert set(found) == {"output", "tokens", "weights", "gate", "up", "down"}
    assert 0 < max(found.values()) < gpu.ERROR_TARGET


def test_nan_is_no_small_error():
    assert not gpu_checks.relative(np.array([np.nan]), np.ones(1)) <= gpu.ERROR_TARGET


def test_layer_split_over_one_device_is_the_layer():
    assert gpu_scaling.difference(TINY, 1) < 1e-2
    layer, (params, x_BSD) = gpu_layer.make_layer(TINY)
    y, (grads, _) = jax.eval_shape(gpu_layer.passes(layer, "both"), params, x_BSD)
    assert y.shape == x_BSD.shape
    assert grads["experts"]["up"].dtype == params["experts"]["up"].dtype == x_BSD.dtype


def tiny_step() -> gpu_step.Step:
    model = gpu_step.default_step(layers=1).model
    assert model.moe is not None
    moe = replace(model.moe, d_model=16, d_ff=8, routing=replace(model.moe.routing, num_experts=8))
    attention = replace(model.attention, num_heads=2, num_kv_heads=2, head_dim=8)
    model = replace(model, vocab_size=64, d_model=16, d_ff=8, moe=moe, attention=attention)
    return gpu_step.Step(model=model, rows=2, length=8)


def test_step_counts_the_weights_that_a_token_meets():
    step = tiny_step()
    run, (params, state), ids_BS = gpu_step.make_step(step)
    # all 8 experts are chosen, so every matrix but the embedding is met
    sizes = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    weights = sum(sizes) - params["embedding"].size
    scores = 6 * 2 * 16 * 8 / 2
    assert step.flops == pytest.approx(16 * (6 * weights + scores))
    (updated, _), loss = jax.eval_shape(run, params, state, ids_BS)
    assert loss.shape == ()
    assert jax.tree.map(lambda leaf: leaf.dtype, updated) == jax.tree.map(
        lambda leaf: leaf.dtype, params
    )


def test_kernels_are_told_apart_by_name():
    kernels = Counter({"moejax_grouped_plain": 2.0, "nvjet_tst": 1.0, "loop_fusion": 1.0})
    shares = gpu_step.by_kind(kernels)
    assert shares["grouped products"] == 0.5
    assert shares["dense products"] == shares["elementwise, gathers and sums"] == 0.25


def test_tuner_stores_the_fastest_tiles_that_run(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEJAX_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_tune.grouped, "kernels_here", lambda: "triton")
    seconds = dict.fromkeys(tuning.candidates("triton"), 2.0)
    best = tuning.candidates("triton")[-1]
    seconds[best] = 1.0
    key = tuning.Key(kernels="triton", product="plain", contracted=8, width=12, experts=4)

    def run(blocks):
        if blocks not in seconds:
            raise ValueError("no room for the tiles it had")
        return blocks

    monkeypatch.setattr(gpu_tune, "products", lambda shape, kernels: {key: run})
    monkeypatch.setattr(gpu_tune, "_seconds", lambda call: seconds[call()])
    seconds.pop(tuning.lookup(key), None)
    (row,) = gpu.tune_rows([TINY, TINY], lambda text: None)
    assert (row.value, row.baseline) == (1e3, None)
    assert tuning.lookup(key) == best


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_tuned_products_are_those_of_the_layer():
    shape = Shape(tokens=8, width=64, hidden=128, experts=2, top_k=1)
    found = gpu_tune.products(shape, "triton")
    shapes = {
        (key.product, key.contracted): jax.eval_shape(partial(run, tuning.lookup(key)))
        for key, run in found.items()
    }
    assert [leaf.shape for leaf in shapes["swiglu", 64]] == [(256, 128)] * 3
    assert [leaf.shape for leaf in shapes["plain", 128]] == [(256, 64)]
    assert [leaf.shape for leaf in shapes["transposed", 64]] == [(256, 128)]
    assert [leaf.shape for leaf in shapes["transposed", 128]] == [(256, 64)]
    assert shapes["weights", 64].shape == (2, 64, 128)
    assert shapes["weights", 128].shape == (2, 128, 64)


def test_nothing_to_tune_is_said(monkeypatch):
    monkeypatch.setattr(gpu_tune.grouped, "kernels_here", lambda: None)
    with pytest.raises(ValueError, match="nothing to tune"):
        gpu_tune.tune([TINY])
    with pytest.raises(ValueError, match="'moe' has nothing to tune; --tune is for gpu"):
        bench.measure("moe", tune=True)
