"""Parity finds what is wrong, and names the op, the module and the line."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowering import parity
from lowering.api import lower_graph_of
from lowering.runtime.folder import Sample
from lowering.runtime.metrics import compare
from lowering.trace import trace


class Net(nn.Module):
    """Somebody's own model."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(24, name="up")(x))
        return nn.Dense(5, name="down")(h) * jnp.tanh(x[:, :5])


@pytest.fixture(scope="module")
def net():
    model = Net()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 40)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda a: a + rng.normal(0, 0.1, a.shape).astype("f"), variables)
    return model.apply, variables, {"x": x}


def test_equal_programs_pass(net):
    parity.assert_parity(*net)


def broken(net, op_name, **attrs):
    """The program with one op changed, and its report."""
    function, params, inputs = net
    lowered = lower_graph_of(
        trace(function, params, inputs), name="net", policy="float32", arch="wormhole_b0"
    )
    index = next(i for i, op in enumerate(lowered.program.ops) if op.name == op_name)
    ops = list(lowered.program.ops)
    ops[index] = ops[index].replace(attrs={**ops[index].attrs, **attrs})
    program = lowered.program.replace(ops=tuple(ops))
    expected = [function(params, inputs["x"])]
    golden = lowered.golden(inputs)
    return parity.check_program(program, Sample(inputs, expected), "P1", golden), index


def test_bisect_names_the_first_wrong_op(net):
    report, index = broken(net, "linear", activation="silu")
    assert not report.ok
    first = report.first_failure
    assert first.op == index
    assert first.call == "linear"
    assert "Net/up" in first.source or "Net" in first.source
    assert "test_parity.py:" in first.source
    assert "first op out of tolerance" in str(report)


def test_ops_before_the_wrong_one_pass(net):
    report, index = broken(net, "slice", begins=(0, 1), ends=(6, 6))
    assert report.first_failure.op == index
    assert all(row.ok for row in report.ops if row.op < index)


def test_assert_parity_says_where(net, monkeypatch):
    function, params, inputs = net
    monkeypatch.setattr(parity, "EXACT", -1.0)
    with pytest.raises(AssertionError, match=r"P1 float32 on reference: FAILED\n  output\.0: PCC"):
        parity.assert_parity(function, params, inputs, policies=["float32"])


def metrics(found, expected):
    return compare(np.asarray(found, np.float64), np.asarray(expected, np.float64))


X = np.linspace(-1, 1, 101)


@pytest.mark.parametrize(
    ("found", "level", "policy", "ok"),
    [
        (X + 0.9e-5, "P1", "float32", True),
        (X + 1.1e-5, "P1", "bfloat16", False),
        (X * 1.001, "P2", "bfloat16", True),
        (X * 1.2, "P2", "bfloat16", False),  # correlation 1, wrong scale
        (X + 0.1, "P2", "bfloat16", False),  # correlation 1, wrong offset
        (X * 1.1, "P2", "bfloat8_b", True),
        (-X, "P2", "bfloat8_b", False),
        (np.where(X[3] == X, np.nan, X), "P2", "bfloat8_b", False),
    ],
)
def test_within(found, level, policy, ok):
    assert parity.within(metrics(found, X), level, policy) is ok


def test_constants_are_judged_by_the_norm():
    assert parity.within(metrics(np.full(9, 2.005), np.full(9, 2.0)), "P2", "bfloat16")
    assert not parity.within(metrics(np.full(9, 2.1), np.full(9, 2.0)), "P2", "bfloat16")


def test_infinities_must_stand_in_the_same_places():
    masked = np.where(X < 0, -np.inf, X)
    assert parity.within(metrics(masked, masked), "P1", "float32")
    assert not parity.within(metrics(X, masked), "P2", "bfloat16")


def test_golden_values_are_those_of_jax(net):
    """They come from the traced function, not from the program."""
    function, params, inputs = net
    lowered = lower_graph_of(
        trace(function, params, inputs), name="net", policy="bfloat16", arch="wormhole_b0"
    )
    golden = lowered.golden(inputs)
    tanh = next(op.output.name for op in lowered.program.ops if op.name == "tanh")
    np.testing.assert_allclose(golden[tanh], np.tanh(inputs["x"][:, :5]), rtol=1e-6)
    (name,) = lowered.program.outputs
    np.testing.assert_allclose(golden[name], function(params, inputs["x"]), rtol=1e-5)


def test_reports_are_json(net):
    report, _ = broken(net, "linear", activation=None)
    data = report.to_json()
    assert data["first_failure"]["call"] == "linear"
    assert {"pcc", "relative_l2", "max_abs", "scale", "ok"} <= data["outputs"][0].keys()
    assert dataclasses.replace(report, ops=()).first_failure is None
