"""P1 to P3 of the parity ladder for language models: a prompt and 32 tokens after it."""

import functools

import numpy as np
import pytest
from lm_cases import LANGUAGE_MODELS
from lm_runs import greedy_run, programs, reference

from lowering import parity
from lowering.backends.ttnn import check_many
from lowering.runtime.metrics import compare
from tests.device.runs import on_host

CHIPS = ("wormhole_b0", "blackhole")
WITH_EXPERTS = [name for name, config in LANGUAGE_MODELS.items() if config.moe is not None]
# bfloat8_b moves router logits by more than a close call: there Flax's choices are injected
OWN_CHOICES = [
    (name, policy)
    for name in LANGUAGE_MODELS
    for policy in parity.POLICIES
    if policy != "bfloat8_b" or name not in WITH_EXPERTS
]
# device programs, with those that fill the caches
PROGRAMS_OF_A_LAYER = [
    ("llama", 30, 29),
    ("mixtral", 45, 44),
    ("qwen3-moe", 47, 48),
    ("deepseek-v3", 94, 93),
    ("null-expert", 69, 72),
]
# which policies go to the mock of which chip: bfloat8_b differs in the dtype of weights alone
ON_MOCK = {"wormhole_b0": parity.POLICIES, "blackhole": ("bfloat16",)}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_greedy_tokens_are_those_of_flax(name):
    """P1 at every step: float32 throughout, and the arrangement of ops for bfloat16."""
    expected = reference(name).logits
    for policy in ("float32", "bfloat16"):
        found = on_host(greedy_run(name, policy, np.zeros(len(expected), bool)), "exact")
        for logits, wanted in zip(found, expected, strict=True):
            assert parity.within(compare(logits, wanted), "P1", policy)
            assert np.array_equal(np.argmax(logits, axis=-1), np.argmax(wanted, axis=-1))


@pytest.mark.parametrize(("name", "policy"), OWN_CHOICES)
def test_rounding(name, policy):
    """P2 at every step; experts are the program's own choice where Flax's was no close one."""
    run = reference(name)
    assert run.decided.mean() > 0.3
    found = on_host(greedy_run(name, policy, ~run.decided), "device")
    for logits, wanted in zip(found, run.logits, strict=True):
        metrics = compare(logits, wanted)
        assert parity.within(metrics, "P2", policy), metrics


@pytest.mark.parametrize("policy", ["bfloat16", "bfloat8_b"])
@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_rounding_with_flaxs_choices(name, policy):
    """P2 at every step, with Flax's routing in place of the program's own."""
    expected = reference(name).logits
    found = on_host(greedy_run(name, policy, np.ones(len(expected), bool)), "device")
    for logits, wanted in zip(found, expected, strict=True):
        metrics = compare(logits, wanted)
        assert parity.within(metrics, "P2", policy), metrics


@functools.cache
def on_mock(chip):
    """Every program on one mock device."""
    cases = [
        program
        for name in LANGUAGE_MODELS
        for policy in ON_MOCK[chip]
        for program in programs(name, policy, chip)
    ]
    return {report.program: report for report in check_many(cases, chip)}


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_legality(name, chip):
    """P3: every op accepted, shapes and dtypes as stated."""
    for policy in ON_MOCK[chip]:
        for part in ("prefill", "decode"):
            report = on_mock(chip)[f"{name}/{part}/{policy}"]
            assert report.ok, report.errors
            assert report.device_programs > 0
            assert report.host_ops == ()


@pytest.mark.parametrize(("name", "prefill", "decode"), PROGRAMS_OF_A_LAYER)
def test_number_of_device_programs_of_a_layer(name, prefill, decode):
    """Of the second layer, in bfloat16; the table of docs/lowering.md."""
    for part, most in (("prefill", prefill), ("decode", decode)):
        report = on_mock("wormhole_b0")[f"{name}/{part}/bfloat16"]
        of_layer = [op for op in report.ops if "layers_1" in op.source]
        fills = sum(op.name == "fill_cache" for op in report.ops) // 2
        assert sum(len(op.programs) for op in of_layer) + fills <= most
