"""P1 to P3 of the parity ladder for MOIRAI-MoE: one forward of fixed sizes."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from moirai_cases import FORECASTERS, TINY, forecaster, mixed_patches
from routed import compare_choices, routed_by

from lowering import lower, parity
from lowering.api import lower_graph_of
from lowering.backends import reference
from lowering.backends.ttnn import check_many
from lowering.runtime.metrics import compare
from lowering.trace import trace
from moejax.moe.layer import MoELayer

# the program with everything in it climbs all levels
WHOLE = "mixture"
CASES = {
    **{name: functools.partial(forecaster, name) for name in FORECASTERS},
    "module, mixed patches": mixed_patches,
}


@functools.cache
def graph(name):
    return trace(*CASES[name]())


@functools.cache
def expected(name):
    function, variables, inputs = CASES[name]()
    with jax.default_matmul_precision("highest"):
        return [
            np.asarray(x) for x in jax.tree.leaves(jax.jit(function)(variables, *inputs.values()))
        ]


def program(name, policy, arch="wormhole_b0"):
    label = f"{name}/{policy}"
    return lower_graph_of(graph(name), name=label, policy=policy, arch=arch).program


def check(name, policy, level):
    found = reference.run(program(name, policy), CASES[name]()[2], parity.MODES[level])
    for array, wanted in zip(found, expected(name), strict=True):
        metrics = compare(array, wanted)
        assert parity.within(metrics, level, policy), metrics


@pytest.mark.parametrize("name", CASES)
def test_is_the_same_function(name):
    """P1, in the arrangement of ops for bfloat16; for float32 too where everything is in it."""
    check(name, "bfloat16", "P1")
    if name == WHOLE:
        check(name, "float32", "P1")


@pytest.mark.parametrize("policy", parity.POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_rounding(name, policy):
    """P2 with the program's own choices, of which none turns the result here."""
    check(name, policy, "P2")


@functools.cache
def recorded():
    """(what reaches the experts, index, weight) of each layer."""
    function, variables, inputs = forecaster(WHOLE)
    tokens, choices = [], []

    def record(run, args, kwargs, context):
        result = run(*args, **kwargs)
        if isinstance(context.module, MoELayer) and context.method_name == "route":
            tokens.append(args[0])
            choices.append((result.index, result.weight))
        return result

    def call(variables, *inputs):
        with nn.intercept_methods(record):
            function(variables, *inputs)
        return [(x, *choice) for x, choice in zip(tokens, choices, strict=True)]

    return jax.tree.map(np.asarray, jax.jit(call)(variables, *inputs.values()))


@pytest.mark.parametrize("policy", parity.POLICIES)
def test_experts_are_those_of_flax(policy):
    """Distances, and the choices wherever Flax's do not hang on the error of a distance."""
    layer, all_variables = MoELayer(TINY.moe), forecaster(WHOLE)[1]
    for number, (x, *_) in enumerate(recorded()):
        name = f"layers_{number}"
        parts = {
            "params": all_variables["params"][name]["moe"],
            "router_state": all_variables["router_state"][name]["moe"],
        }
        choices = compare_choices(layer, parts, x, policy)
        assert choices.sure.mean() > 0.5
        np.testing.assert_array_equal(choices.found[choices.sure], choices.expected[choices.sure])


@pytest.mark.parametrize("policy", ["bfloat16", "bfloat8_b"])
def test_rounding_with_flaxs_choices(policy):
    """P2 with Flax's experts and their weights among the inputs."""
    function, variables, inputs = forecaster(WHOLE)
    choices = [array for _, *choice in recorded() for array in choice]
    given = inputs | {f"choice_{i}": array for i, array in enumerate(choices)}

    def routed(variables, *arguments):
        own, pairs = arguments[: len(inputs)], arguments[len(inputs) :]
        with routed_by(iter(zip(pairs[::2], pairs[1::2], strict=True))):
            return function(variables, *own)

    found = reference.run(lower(routed, variables, given, policy=policy), given, "device")
    for array, wanted in zip(found, expected(WHOLE), strict=True):
        assert parity.within(compare(array, wanted), "P2", policy)


# which programs go to the mock of which chip
ON_MOCK = {
    "wormhole_b0": [
        *((WHOLE, policy) for policy in parity.POLICIES),
        *((name, "bfloat16") for name in FORECASTERS if name != WHOLE),
    ],
    "blackhole": [(WHOLE, "bfloat16")],
}


@functools.cache
def on_mock(chip):
    programs = [program(*case, chip) for case in ON_MOCK[chip]]
    return {report.program: report for report in check_many(programs, chip)}


@pytest.mark.parametrize("chip", ON_MOCK)
def test_legality(chip):
    """P3: every op accepted, shapes and dtypes as stated, nothing on the host."""
    for report in on_mock(chip).values():
        assert report.ok, report.errors
        assert report.device_programs > 0
        assert report.host_ops == ()


def test_number_of_device_programs_of_a_layer():
    """In bfloat16, of the first layer: attention with its tables, all experts on all tokens."""
    ops = on_mock("wormhole_b0")[f"{WHOLE}/bfloat16"].ops
    of_layer = [op for op in ops if "layers_0" in op.source]
    of_experts = [op for op in of_layer if "/moe" in op.source]
    count, experts = (sum(len(op.programs) for op in part) for part in (of_layer, of_experts))
    assert (count - experts, experts) == (35, 32)


@pytest.mark.parametrize("policy", parity.POLICIES)
def test_scaler_keeps_float32(policy):
    """Location and scale of series far from 0, whatever the policy."""
    function, variables, inputs = forecaster(WHOLE)
    far = {**inputs, "target": np.where(inputs["counted"], 1e4 + inputs["target"], 0)}
    _, loc, scale = function(variables, *far.values())
    _, *found = reference.run(program(WHOLE, policy), far, "device")
    np.testing.assert_allclose(found[0], loc, rtol=1e-6)
    np.testing.assert_allclose(found[1], scale, rtol=1e-3)  # 1e-7 of the offset, squared
