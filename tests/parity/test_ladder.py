"""P1 to P3 of the parity ladder for every model: three policies, both chips."""

import functools
import math

import pytest
from cases import CASES, chosen_experts, moe_layer, mole

from lowering import lower, parity
from lowering.api import lower_graph_of
from lowering.backends.ttnn import check_many
from lowering.trace import trace

CHIPS = ("wormhole_b0", "blackhole")


@pytest.mark.parametrize("name", CASES)
def test_numbers(name):
    """P1: within 1e-5 of the scale; P2: PCC and norm-wise error within the policy's bounds."""
    function, params, inputs = CASES[name]()
    reports = parity.check(function, params, inputs)
    assert {(r.level, r.policy) for r in reports} == {
        (level, policy) for level in parity.LEVELS for policy in parity.POLICIES
    }
    for report in reports:
        assert report.ok, str(report)
        assert report.ops, "no op could be compared with JAX"
        assert report.level == "P2" or report.first_failure is None, str(report)


@functools.cache
def on_mock(chip):
    """Every case under every policy, on one mock device."""
    programs = []
    for name, make in CASES.items():
        function, params, inputs = make()
        graph = trace(function, params, inputs)
        programs += [
            lower_graph_of(graph, name=f"{name}/{policy}", policy=policy, arch=chip).program
            for policy in parity.POLICIES
        ]
    return {report.program: report for report in check_many(programs, chip)}


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", CASES)
def test_legality(name, chip):
    """P3: every op accepted, shapes and dtypes as stated, programs and L1 recorded."""
    for policy in parity.POLICIES:
        report = on_mock(chip)[f"{name}/{policy}"]
        assert report.ok, report.errors
        assert report.device_programs > 0
        assert report.peak_l1_bytes_per_core > 0
        assert report.host_ops == ()


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"base": "dlinear"}, 8),
        ({"base": "rlinear"}, 17),
        ({"base": "rmlp", "d_model": 512}, 23),
        ({"base": "dlinear", "router": "stats"}, 20),
        ({"base": "dlinear", "router": "stats", "top_k": 2}, 32),
    ],
    ids=str,
)
def test_number_of_device_programs(options, most):
    """B 32, S 336, P 96, C 7, K 4 in bfloat16 on Wormhole: weights in L1, few programs."""
    size = {"batch": 32, "seq_len": 336, "pred_len": 96, "num_channels": 7, "num_experts": 4}
    function, params, inputs = mole(**size | {"kernel_size": 25} | options)
    program = lower(function, params, inputs)
    (report,) = check_many([program], "wormhole_b0")
    assert report.ok, report.errors
    assert report.device_programs <= most
    assert all(weight.memory == "l1" for weight in program.weights)
    assert not any(op.name == "to_layout" for op in program.ops)


@pytest.mark.parametrize("tokens", [64, 1024])
def test_number_of_device_programs_of_the_moe_layer(tokens):
    """Top-2 of 8, d 512, ff 1024: router and experts."""
    program = lower(*moe_layer(tokens=tokens, d_model=512, d_ff=1024))
    (report,) = check_many([program], "wormhole_b0")
    assert report.ok, report.errors
    assert report.device_programs <= 16


@pytest.mark.parametrize(("tokens", "most"), [(1, 19), (4, 28), (32, 16)])
def test_number_of_device_programs_of_the_chosen_experts(tokens, most):
    """The same layer with dispatch="indexed": the stack is stored once, and never converted."""
    function, params, inputs = chosen_experts(tokens, d_model=512, d_ff=1024)
    program = lower(function, params, inputs)
    (report,) = check_many([program], "wormhole_b0")
    assert report.ok, report.errors
    assert report.device_programs <= most
    kernels = 3 * 8 * 512 * 1024
    assert sum(math.prod(w.shape) for w in program.weights if len(w.shape) > 1) < 1.01 * kernels
