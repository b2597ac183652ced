import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from moejax.moe.experts import expert_mlp
from train import bench
from train.bench import Row
from train.benchmarks import moe, moe_decode, moe_dispatch, moe_grid
from train.benchmarks.pairs import Pair, time_pairs

SHAPE = moe_dispatch.Shape(
    tokens=64, width=16, hidden=24, experts=4, rounds=1, others=("onehot", "ragged")
)
DECODE = moe_decode.Decode(tokens=(1, 4), width=16, hidden=24, layers=2, rounds=1)
GRID = moe_grid.Grid(
    batches=(1, 2), length=32, width=16, hidden=24, experts=(4, 8), varied=(2, 4), rounds=1
)
SMALL_GRID = replace(GRID, batches=(1,), experts=(4,), jitters=(0.0,), varied=(1, 4))
TINY = moe.Settings(shape=replace(SHAPE, others=()), decode=DECODE, grid=SMALL_GRID)


def test_dispatches_do_the_same_work():
    x_TD, params, routing = moe_dispatch.make_inputs(SHAPE)
    expected = np.zeros(x_TD.shape)
    for token, row in enumerate(np.asarray(routing.index)):
        for slot, expert in enumerate(row):
            one = jax.tree.map(lambda leaf, expert=expert: leaf[expert], params)
            weight = routing.weight[token, slot]
            expected[token] += weight * np.asarray(expert_mlp(x_TD[token], one))
    for name in ("blockpad", "ragged"):
        found = moe_dispatch.make_case(SHAPE, name, "forward")()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_judged_routing_fits_the_places():
    shape = moe_dispatch.Shape(width=8, hidden=8)
    routing = moe_dispatch.make_inputs(shape)[2]
    for name in ("gather", "onehot"):
        kept = moe_dispatch.limit(routing, name).keep
        assert float(np.mean(~np.asarray(kept))) < 0.002, name


def test_forward_and_backward_gives_all_gradients():
    y, grads = moe_dispatch.make_case(SHAPE, "blockpad", "both")()
    x_TD, params, routing = moe_dispatch.make_inputs(SHAPE)
    expected = (x_TD, params, routing.weight)
    assert y.shape == x_TD.shape
    assert jax.tree.map(np.shape, grads) == jax.tree.map(np.shape, expected)


def test_ratio_is_of_pairs_and_targets_bound_either_side():
    pair = Pair(
        wall=np.array([1.0, 4.0, 2.0]),
        cpu=np.ones(3),
        baseline_wall=np.array([0.5, 4.0, 1.0]),
        baseline_cpu=np.ones(3),
    )
    assert pair.speed == 0.5
    row = Row(name="a", metric="m", value=1.2, unit="x", baseline=1.0, target=1.3)
    assert row.ok is False
    row = Row(name="a", metric="m", value=1.2, unit="x", baseline=1.0, target=1.3, at_most=True)
    assert row.ok
    row = Row(
        name="a", metric="", value=9, unit="", baseline=1.0, target=1, of_baseline=True, paired=0.5
    )
    assert row.ratio == 0.5
    assert row.ok is False


def test_each_method_runs_next_to_its_baseline():
    calls = []
    methods = {name: lambda name=name: calls.append(name) for name in "ab"}
    pairs = time_pairs(methods, lambda: calls.append("base"), rounds=1)
    assert calls == ["a", "base", "b", "base", "base", "a", "base", "b"]
    assert pairs["a"].wall.shape == (1,)


def test_grid_counts_drops_as_capacity_says():
    usages = moe_grid.route_grid(GRID)
    assert set(usages) == set(moe_grid.all_points(GRID))
    for point, found in usages.items():
        choices = point.batch * GRID.length * point.top_k
        assert found.wanted.sum() == choices
        places = np.ceil(choices / point.experts * point.factor - 1e-9)
        assert found.kept.max() <= places
        assert np.array_equal(found.kept, np.minimum(found.wanted, places))
        assert found.drop_rate == pytest.approx(1 - found.kept.sum() / choices, abs=1e-6)


def test_suite_writes_rows_table_and_plots(tmp_path, monkeypatch):
    monkeypatch.setattr(moe, "Settings", lambda: TINY)
    rows = bench.measure("moe", out=tmp_path)
    assert all(np.isfinite(row.value) for row in rows)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    judged = {row.name for row in rows if row.target is not None}
    if jax.default_backend() == "cpu":
        assert {"gather_forward", "blockpad_both", "gather_both_memory", "decode_4"} <= judged
    plots = {path.name for path in tmp_path.glob("*.png")}
    assert {"throughput.png", "drops.png", "entropy.png"} <= plots
    for top_k in (1, 2):
        for factor in (1.0, 1.25, 2.0):
            assert f"expert_utilization_k{top_k}_cf{factor}.png" in plots
    table = bench.markdown("moe", rows)
    assert table.count("\n| ") == len(rows) + 2
    bench.write_json(rows, tmp_path / "rows.json")
    assert len(json.loads((tmp_path / "rows.json").read_text())) == len(rows)
