"""Benchmarks: rows, the order of timing, and that FLOPs are what the traced step multiplies."""

import json
import math

import jax
import numpy as np
import pytest

from train import bench
from train.bench import Row, interleave
from train.benchmarks import mole
from train.cli import main
from train.recipes import mole as recipe


def dots(jaxpr) -> int:
    """FLOPs of all matrix products in a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inside = getattr(value, "jaxpr", value)
            total += dots(inside) if hasattr(inside, "eqns") else 0
    return total


@pytest.mark.parametrize("num_experts", [1, 4])
def test_flops_are_those_of_the_traced_step(num_experts):
    config = mole.make_config(num_experts)
    task = recipe.make_task(config, mole.make_dataset(config))
    params = jax.eval_shape(task.init, jax.random.key(0))
    batch = jax.eval_shape(task.cut, task.arrays, np.zeros(mole.BATCH, np.int32))
    gradient = jax.make_jaxpr(jax.grad(task.loss, has_aux=True))(params, batch, jax.random.key(0))
    forward = jax.make_jaxpr(task.errors)(params, batch)
    expected = mole.BATCH * mole.expert_flops(config)
    # the rest are the router's layers and the seven kernels' worth of mixing, all uncounted
    for jaxpr, factor in ((forward, 1), (gradient, 2)):
        assert expected * factor <= dots(jaxpr.jaxpr) <= 1.1 * expected * factor


def test_rows_judge_value_or_ratio():
    fast = Row(name="a", metric="m", value=20.0, unit="x", baseline=10.0, target=15.0)
    share = Row(name="b", metric="m", value=3.0, unit="x", baseline=10.0, target=0.35)
    assert fast.ok
    assert fast.ratio == 2.0
    assert share.ok
    share = Row(
        name="b", metric="m", value=3.0, unit="x", baseline=10.0, target=0.35, of_baseline=True
    )
    assert share.ok is False
    assert Row(name="c", metric="m", value=1.0, unit="x").ok is None


def test_cases_take_turns():
    calls = []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = interleave(cases, rounds=2)
    assert calls == ["b", "a", "a", "b", "b", "a"]
    assert set(seconds) == {"a", "b"}


def test_unknown_suite_suggests_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'mole'"):
        bench.measure("mol")


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--strict",), 1)])
def test_a_missed_target_is_named_and_fails_when_strict(options, status, monkeypatch, capsys):
    rows = [Row(name="slow_one", metric="m", value=1.0, unit="x", target=2.0)]
    monkeypatch.setattr(bench, "measure", lambda *_, tune: rows)
    assert main(["bench", "mole", *options]) == status
    assert "target missed: slow_one" in capsys.readouterr().out


@pytest.mark.slow
def test_suite_runs_and_writes_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(mole, "ROUNDS", 1)
    monkeypatch.setattr(mole, "BASELINE_STEPS", 4)
    monkeypatch.setattr(mole, "MATMUL_SIZES", (128,))
    rows = bench.measure("mole")
    bench.write_json(rows, tmp_path / "deep" / "rows.json")
    read = json.loads((tmp_path / "deep" / "rows.json").read_text())
    keys = {"name", "metric", "value", "unit", "baseline", "ratio", "target", "ok"}
    assert all(row.keys() == keys for row in read)
    assert all(np.isfinite(row["value"]) and row["value"] > 0 for row in read)
    judged = {row["name"] for row in read if row["target"] is not None}
    assert {"dlinear_train", "mole_k4_train_flops"} <= judged
