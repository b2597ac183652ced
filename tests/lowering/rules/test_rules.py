"""Every rule against JAX: exactly, and with the rounding of the device under each policy."""

import functools

import jax
import numpy as np
import pytest

from lowering import lower
from lowering.backends.reference import run
from lowering.backends.ttnn import check_many
from lowering.ir import Program
from lowering.trace import trace
from tests.lowering.rules.cases.base import Case
from tests.lowering.rules.cases.table import CASES

CHIPS = ("wormhole_b0", "blackhole")
POLICIES = ("float32", "bfloat16", "bfloat8_b")
# ops that read float32 as TF32
TF32 = {"matmul", "linear", "softmax", "rms_norm", "layer_norm"}


def lowered(case: Case, policy: str) -> Program:
    def function(_, *inputs):
        return case.function(*inputs)

    return lower(function, None, case.named_inputs(), policy=policy, name=f"{case} {policy}")


def distinct_programs(case: Case) -> dict[str, Program]:
    """The case's programs by policy, without those that differ in nothing but the policy's name."""
    programs = {policy: lowered(case, policy) for policy in POLICIES}
    plain = programs["bfloat8_b"].replace(name="", policy="bfloat16")
    if plain == programs["bfloat16"].replace(name=""):
        del programs["bfloat8_b"]
    return programs


def difference(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """found - expected in float64, 0 where the two are equal (infinities)."""
    found, expected = (np.asarray(array, np.float64) for array in (found, expected))
    assert found.shape == expected.shape
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    with np.errstate(invalid="ignore"):
        return np.where(found == expected, 0.0, found - expected)


def assert_close(found, expected, *, largest: float = np.inf, relative: float = np.inf) -> None:
    """`largest`: of the error over the scale; `relative`: L2 error. Integers are equal."""
    if expected.dtype.kind in "iub":
        np.testing.assert_array_equal(found, expected)
        return
    error = difference(found, expected)
    finite = np.asarray(expected, np.float64)[np.isfinite(expected)]
    scale = np.abs(finite).max(initial=0)
    assert np.abs(error).max(initial=0) <= largest * max(scale, 1e-30)
    assert np.linalg.norm(error) <= relative * max(np.linalg.norm(finite), 1e-30)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_numbers(case):
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(case.function(*case.inputs))]
    for policy, program in distinct_programs(case).items():
        exact = run(program, case.named_inputs()) if policy == "float32" else ()
        for found, wanted in zip(exact, expected, strict=False):
            assert_close(found, wanted, largest=case.exact)
        if policy == "float32" and not any(op.name in TF32 for op in program.ops):
            continue
        device = run(program, case.named_inputs(), "device")
        assert len(device) == len(expected)
        for found, wanted in zip(device, expected, strict=True):
            assert_close(found, wanted, relative=getattr(case, policy))


@functools.cache
def mock_reports(arch: str) -> dict[str, str]:
    """Errors of every case's programs on the mock of a chip, all in one child process."""
    programs = {
        f"{case} {policy}": program
        for case in CASES
        for policy, program in distinct_programs(case).items()
    }
    reports = check_many(list(programs.values()), arch)
    return {name: "; ".join(report.errors) for name, report in zip(programs, reports, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("arch", CHIPS)
def test_every_op_is_legal(arch):
    rejected = {name: errors for name, errors in mock_reports(arch).items() if errors}
    assert not rejected


def test_names_are_unique():
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", [c for c in CASES if c.rule != "function"], ids=str)
def test_goes_through_its_rule(case):
    """The traced function, before call-like equations are taken apart, names the rule."""
    names = primitives(jax.make_jaxpr(case.function)(*case.inputs))
    graph = trace(lambda _, *inputs: case.function(*inputs), None, case.named_inputs())
    names |= {node.primitive for node in every_node(graph)}
    assert case.rule in names


def primitives(jaxpr) -> set[str]:
    names = set()
    for eqn in jaxpr.eqns:
        names.add(eqn.primitive.name)
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    names |= primitives(getattr(inner, "jaxpr", inner))
    return names


def every_node(graph):
    for node in graph.nodes:
        yield node
        if node.body is not None:
            yield from every_node(node.body)
