"""Counts by hand-computed examples, and the estimate's arithmetic."""

import json

import pytest

from lowering.cost import CHIPS, TARGETS, estimate, is_view, op_cost
from lowering.ir import Op, Program, Value

X = Value("x", (32, 336, 7), "bfloat16")
W = Value("w", (1, 384, 336), "bfloat16", memory="l1")
HEADS = Value("heads", (32, 384, 7), "bfloat16")
VIEW = Value("view", (32, 4, 96, 7), "bfloat16")
Y = Value("y", (32, 4, 96, 7), "bfloat16")
OPS = (
    Op("matmul", ("w", "x"), (HEADS,)),
    Op("reshape", ("heads",), (VIEW,), {"shape": [32, 4, 96, 7]}),
    Op("exp", ("view",), (Y,)),
)
PROGRAM = Program("p", (X,), (W,), OPS, ("y",))
WORMHOLE = CHIPS["wormhole_b0"]


def test_counts_of_a_matmul():
    cost = op_cost(0, OPS[0], PROGRAM.values(), WORMHOLE, (12,))
    tile = 2048
    assert cost.flops == 2 * 32 * 384 * 7 * 336
    assert cost.read_bytes == (32 * 11 + 12 * 11) * tile
    assert cost.written_bytes == 32 * 12 * tile
    assert cost.dram_bytes == (32 * 11 + 32 * 12) * tile
    # three passes of 16 cycles for a product of two tiles, at 1 GHz on twelve cores
    assert cost.bound == "arithmetic"
    assert cost.time_us == pytest.approx(32 * 12 * 11 * 48 / 12 / 1e3 + WORMHOLE.launch_us)


def test_more_cores_and_fewer_launches_cost_less():
    values = PROGRAM.values()
    few, many = (op_cost(0, OPS[0], values, WORMHOLE, (n,)).time_us for n in (12, 64))
    assert many < few
    one, three = (op_cost(2, OPS[2], values, WORMHOLE, (64,) * n) for n in (1, 3))
    assert three.time_us > one.time_us + 2 * WORMHOLE.launch_us
    assert three.programs == 3


def test_free_reshape_costs_nothing():
    cost = op_cost(1, OPS[1], PROGRAM.values(), WORMHOLE)
    assert (cost.programs, cost.time_us, cost.read_bytes, cost.bound) == (0, 0, 0, "free")


@pytest.mark.parametrize(
    ("before", "after", "free"),
    [
        ((32, 384, 7), (32, 4, 96, 7), True),
        ((32, 384, 7), (32 * 384, 7), True),
        ((4, 1, 96, 7), (4, 96, 7), True),
        ((4, 50, 7), (2, 2, 50, 7), True),
        ((32, 28), (32, 4, 7), False),
        ((32, 4, 7), (32, 4, 1, 7), False),
        ((32, 7, 336), (224, 336), False),
        ((7,), (1, 7), True),
    ],
)
def test_views(before, after, free):
    a, b = Value("a", before, "float32"), Value("b", after, "float32")
    assert is_view(Op("reshape", ("a",), (b,), {"shape": list(after)}), [a]) is free


@pytest.mark.parametrize("arch", CHIPS)
def test_estimate_adds_up_and_states_its_assumptions(arch):
    report = estimate(PROGRAM, 32, arch=arch, launches={0: (12,), 1: (), 2: (64,)})
    assert report.flops == sum(op.flops for op in report.ops)
    assert report.programs == 2
    assert report.device_us == pytest.approx(sum(op.time_us for op in report.ops))
    assert report.device_us_without_trace > report.device_us
    slowest = max(report.device_us, report.transfer_us)
    assert report.sequences_per_s == pytest.approx(32e6 / slowest)
    assert report.latency_ms == pytest.approx((report.device_us + report.transfer_us) / 1e3)
    assert report.targets == TARGETS == ((200, 30), (800, 15))
    data = json.loads(json.dumps(report.to_json()))
    assert data["estimate"] is True
    assert {"launch_us", "clock_ghz", "pcie_gb_per_s"} <= {
        row["name"] for row in data["assumptions"]
    }
    assert all(row["why"] for row in data["assumptions"])


def test_unknown_launches_mean_one_program_on_all_cores():
    report = estimate(PROGRAM, 32)
    assert [op.programs for op in report.ops] == [1, 0, 1]
    assert report.board == "N150"
