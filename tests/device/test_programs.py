"""P4 of the parity ladder: all five systems on a card or the simulator."""

import pytest

from lowering import parity
from tests.device.programs import PROGRAMS

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(0)]

SECTION, NO_KERNEL = "Programs", {}
FACTOR = 1.5  # of the error that the reference backend predicts


def make_run(policy, name):
    return PROGRAMS[name](policy)


@pytest.mark.parametrize("policy", parity.POLICIES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_numbers(name, policy, measured):
    """P2's thresholds, and an error of the size that the reference backend predicts."""
    assert parity.close(measured.pcc, measured.relative_l2, policy), measured
    assert 1 / FACTOR <= measured.relative_l2 / measured.predicted <= FACTOR, measured
