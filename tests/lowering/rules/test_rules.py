"""Every rule against JAX: exactly, and with the rounding of the device under each policy."""

import ast
import builtins
import functools
from collections.abc import Iterable

import jax
import numpy as np
import pytest

from lowering.api import lower_graph_of
from lowering.backends.reference import run
from lowering.backends.ttnn import check_many
from lowering.codegen import generate
from lowering.graph import Graph
from lowering.ir import Arch, Policy, Program, Source
from lowering.trace import trace
from tests.lowering.rules.cases.base import Case
from tests.lowering.rules.cases.table import CASES, TRACED

POLICIES: tuple[Policy, ...] = ("float32", "bfloat16", "bfloat8_b")
# bfloat8_b differs from bfloat16 in the dtype of weights alone
ON_MOCK: dict[Arch, tuple[Policy, ...]] = {
    "wormhole_b0": POLICIES,
    "blackhole": ("float32", "bfloat16"),
}
INFINITIES = [case for case in CASES if "infinity" in case.name or case.name == "false scalar"]
# ops that read float32 as TF32
TF32 = {"matmul", "linear", "softmax", "rms_norm", "layer_norm"}


@functools.cache
def traced(case: Case) -> Graph:
    return trace(lambda _, *inputs: case.function(*inputs), None, case.named_inputs())


def lowered(
    case: Case, arch: Arch = "wormhole_b0", policies: tuple[Policy, ...] = POLICIES
) -> dict[Policy, Program]:
    """The case's programs by policy."""
    return {
        policy: lower_graph_of(
            traced(case), name=f"{case} {policy}", policy=policy, arch=arch
        ).program
        for policy in policies
    }


def anonymous(program: Program) -> str:
    """What a program asks of the device: its text without its name, policy and sources."""
    ops = tuple(op.replace(source=Source()) for op in program.ops)
    return str(program.replace(name="", policy="float32", ops=ops))


def distinct_programs(programs: Iterable[Program]) -> list[Program]:
    return list({anonymous(program): program for program in programs}.values())


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
    programs = lowered(case)
    exact = run(programs["float32"], case.named_inputs())
    for found, wanted in zip(exact, expected, strict=True):
        assert_close(found, wanted, largest=case.exact)
    for policy, program in programs.items():
        if policy == "float32" and not any(op.name in TF32 for op in program.ops):
            continue
        device = run(program, case.named_inputs(), "device")
        for found, wanted in zip(device, expected, strict=True):
            assert_close(found, wanted, relative=getattr(case, policy))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ON_MOCK)
def test_every_op_is_legal(arch):
    """All cases on the mock of a chip, in one child process."""
    programs = distinct_programs(
        p for case in CASES for p in lowered(case, arch, ON_MOCK[arch]).values()
    )
    reports = check_many(programs, arch)
    rejected = [f"{report.program}: {error}" for report in reports for error in report.errors]
    assert not rejected


@pytest.mark.parametrize("case", [*CASES[::6], *INFINITIES], ids=str)
def test_generated_code_defines_what_it_reads(case):
    tree = ast.parse(generate(lowered(case)["bfloat16"]))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    defined = {name.id for name in names if isinstance(name.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
    undefined = {name.id for name in names} - defined - {"__file__"}
    assert not undefined


def test_names_are_unique():
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", [c for c in CASES if c.rule != "function"], ids=str)
def test_goes_through_its_rule(case):
    if case.rule in TRACED:
        assert case.rule in primitives(jax.make_jaxpr(case.function)(*case.inputs))
    else:
        assert case.rule in {node.primitive for node in every_node(traced(case))}


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
