"""P1 to P3 of the parity ladder for MOIRAI-MoE: one forward of fixed sizes."""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from moirai_cases import FORECASTERS, TINY, forecaster, mixed_patches
from routed import compare_choices

from lowering import parity
from lowering.api import lower_graph_of
from lowering.backends import reference
from lowering.backends.ttnn import check_many
from lowering.runtime.metrics import compare
from lowering.trace import trace
from moejax.moe.layer import MoELayer

# the program with everything in it climbs all levels
WHOLE = "mixture"
CASES = {**{name: functools.partial(forecaster, name) for name in FORECASTERS}}
CASES["module, mixed patches"] = mixed_patches


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
    """P2, whatever experts the rounding chose."""
    check(name, policy, "P2")


@functools.cache
def layer_inputs():
    """What reaches the experts of each layer [B, T or R, D], and the layers' variables."""
    function, variables, inputs = forecaster(WHOLE)
    seen = []

    def record(run, args, kwargs, context):
        if isinstance(context.module, MoELayer) and context.method_name == "__call__":
            seen.append(args[0])
        return run(*args, **kwargs)

    def call(variables, *inputs):
        with nn.intercept_methods(record):
            function(variables, *inputs)
        return list(seen)

    xs = jax.jit(call)(variables, *inputs.values())
    state = variables["router_state"]
    return [
        ({"params": params["moe"], "router_state": state[name]["moe"]}, np.asarray(x))
        for x, (name, params) in zip(
            xs, [(n, variables["params"][n]) for n in ("layers_0", "layers_1")], strict=True
        )
    ]


@pytest.mark.parametrize("policy", parity.POLICIES)
def test_experts_are_those_of_flax(policy):
    """Distances, and the choices wherever Flax's do not hang on the error of a distance."""
    layer = MoELayer(replace(TINY, dispatch="dense").moe)
    for variables, x in layer_inputs():
        choices = compare_choices(layer, variables, x, policy)
        assert choices.sure.mean() > 0.5
        np.testing.assert_array_equal(choices.found[choices.sure], choices.expected[choices.sure])


# which programs go to the mock of which chip
ON_MOCK = {
    "wormhole_b0": [
        *((WHOLE, policy) for policy in parity.POLICIES),
        *((name, "bfloat16") for name in FORECASTERS if name != WHOLE),
    ],
    "blackhole": [(WHOLE, "bfloat16")],
}


@pytest.mark.parametrize("chip", ON_MOCK)
def test_legality(chip):
    """P3: every op accepted, shapes and dtypes as stated, nothing on the host."""
    for report in check_many([program(*case, chip) for case in ON_MOCK[chip]], chip):
        assert report.ok, report.errors
        assert report.device_programs > 0
        assert report.host_ops == ()


@pytest.mark.parametrize("policy", parity.POLICIES)
def test_scaler_keeps_float32(policy):
    """Location and scale of series far from 0, whatever the policy."""
    function, variables, inputs = forecaster(WHOLE)
    far = {**inputs, "target": np.where(inputs["counted"], 1e4 + inputs["target"], 0)}
    _, loc, scale = function(variables, *far.values())
    _, *found = reference.run(program(WHOLE, policy), far, "device")
    np.testing.assert_allclose(found[0], loc, rtol=1e-6)
    np.testing.assert_allclose(found[1], scale, rtol=1e-3)  # 1e-7 of the offset, squared
