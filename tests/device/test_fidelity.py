"""The math fidelity of ops is the lowest with which programs are as good as with the highest.

Their own, HiFi3 for bfloat16, is what test_programs.py runs.
"""

from dataclasses import replace

import pytest

from tests.device.programs import PROGRAMS
from tests.device.test_programs import FACTOR

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(0)]

SECTION, NO_KERNEL = "Math fidelity", {}
NAMES = (
    "MoLE dlinear, time router",
    "MoE layer, indexed",
    "MoE LM (mixtral), prefill + 8 steps",
    "MOIRAI-MoE, forward",
    "Chronos-MoE, encoder + 8 steps",
    "Chronos-Bolt",
)


def make_run(policy, name):
    program, fidelity = name.rsplit(", ", 1)
    return replace(PROGRAMS[program](policy), fidelity=fidelity)


@pytest.mark.parametrize("policy", ["bfloat16"])
@pytest.mark.parametrize("name", [f"{name}, HiFi4" for name in NAMES])
def test_four_passes_gain_nothing(name, policy, measured):
    """The error is within the bounds, seen from below, of that foretold for three passes."""
    assert measured.relative_l2 >= measured.predicted / FACTOR, measured


@pytest.mark.parametrize("policy", ["bfloat16"])
@pytest.mark.parametrize("name", [f"{name}, HiFi2" for name in NAMES])
def test_two_passes_lose(name, policy, measured):
    """The error is beyond what is foretold for three passes."""
    assert measured.relative_l2 > measured.predicted * FACTOR, measured
