"""P1 to P3 of the parity ladder for Chronos: T5, mixtures, positions, Bolt."""

import functools

import jax
import numpy as np
import pytest
from chronos_cases import BOLTS, POSITIONS, T5_MODELS, card, cases, lowered, model

from lowering import parity
from lowering.backends.reference import HostSession
from lowering.backends.ttnn import check_many
from lowering.runtime.chronos import ChronosForecaster, Decoding, Positions
from lowering.runtime.packing import Series
from lowering.runtime.sampling import Sampling
from moejax.forecasting.chronos.forecaster import make_pipeline

ALL = (*T5_MODELS, *POSITIONS, *BOLTS)
# device programs in bfloat16 of a model whose decoder has two blocks
PROGRAMS = [
    ("t5", {"encode": 52, "decode": 91}),
    ("shared, then experts", {"encode": 81, "decode": 110}),
    ("blocks of experts' own", {"encode": 107, "decode": 169}),
]


@pytest.mark.parametrize("name", ALL)
def test_is_the_same_function(name):
    """P1 in both arrangements of ops."""
    for policy in ("float32", "bfloat16"):
        for part, program in lowered(name, policy).items():
            report = parity.check_program(program, cases(name)[part][2], "P1")
            assert report.ok, str(report)


@pytest.mark.parametrize("policy", parity.POLICIES)
@pytest.mark.parametrize("name", ALL)
def test_rounding(name, policy):
    """P2."""
    for part, program in lowered(name, policy).items():
        report = parity.check_program(program, cases(name)[part][2], "P2")
        assert report.ok, str(report)


@pytest.mark.parametrize("name", [*T5_MODELS, *POSITIONS])
def test_greedy_tokens_are_those_of_flax(name):
    """A window of 64 steps in the float32 policy, on a full context and a short one."""
    config, variables = model(name)
    found = lowered(name, "float32")
    sessions = [HostSession(program, program.arrays, "exact") for program in found.values()]
    if len(sessions) == 2:
        sessions[1].numbers = sessions[0].numbers
        steps = Decoding(*sessions, card(name))
    else:
        steps = Positions(*sessions, card(name))
    rng = np.random.default_rng(3)
    lengths = (70, 70) if name in POSITIONS else (50, 21)
    series = [3 + np.cumsum(rng.standard_normal(length)) for length in lengths]
    forecaster = ChronosForecaster(steps, card(name))
    rows = [Series(target=one[None]) for one in series]
    samples = forecaster.forecast(rows, num_samples=1, sampling=Sampling(temperature=0.0))
    pipeline = make_pipeline(config, variables)
    expected_B1T = pipeline.predict(series, num_samples=1, top_k=1)  # type: ignore[call-arg]
    for one_NTC, expected_1T in zip(samples, expected_B1T, strict=True):
        # a tied head names the token that it reads
        assert len(np.unique(expected_1T)) > 4 or config.t5.tie_word_embeddings
        np.testing.assert_allclose(one_NTC[:, :, 0], expected_1T, rtol=1e-6)


@functools.cache
def on_mock(chip):
    policies = parity.POLICIES if chip == "wormhole_b0" else ("bfloat16",)
    cases = [p for name in ALL for policy in policies for p in lowered(name, policy, chip).values()]
    return {report.program: report for report in check_many(cases, chip)}


@pytest.mark.parametrize("chip", ["wormhole_b0", "blackhole"])
def test_legality(chip):
    """P3: every op accepted, shapes and dtypes as stated, nothing on the host."""
    for report in on_mock(chip).values():
        assert report.ok, report.errors
        assert report.device_programs > 0
        assert report.host_ops == ()


@pytest.mark.parametrize(("name", "most"), PROGRAMS)
def test_number_of_device_programs(name, most):
    """The table of docs/chronos_moe.md."""
    found = {
        part: on_mock("wormhole_b0")[f"{name}/{part}/bfloat16"].device_programs for part in most
    }
    assert found == most


def test_padding_of_a_context_makes_no_difference():
    """A short context in a program for longer ones, against one of its own length."""
    config, variables = model("t5")
    ids, mask = (cases("t5")["encode"][2].inputs[name][:1] for name in ("ids", "mask"))
    first = int(np.argmax(mask[0]))
    module = config.module()
    whole = module.apply(variables, ids, mask, method="encode")
    short = module.apply(variables, ids[:, first:], mask[:, first:], method="encode")
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(whole[:, first:], short, atol=2e-5)
