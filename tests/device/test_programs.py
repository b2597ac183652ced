"""P4 of the parity ladder: all five systems on a card or the simulator."""

import pytest

from lowering import parity
from tests.device.programs import PROGRAMS

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(0)]

FACTOR = 1.5  # of the error that the reference backend predicts


def make_run(policy, name):
    return PROGRAMS[name](policy)


@pytest.mark.parametrize("policy", parity.POLICIES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_numbers(name, policy, outcome, record_property):
    """P2's thresholds, and an error of the size that the reference backend predicts."""
    assert outcome.error is None, outcome.error
    found = outcome.value
    record_property(
        "device", {"section": "Programs", "name": name, "policy": policy, **vars(found)}
    )
    assert parity.close(found.pcc, found.relative_l2, policy), found
    assert 1 / FACTOR <= found.relative_l2 / found.predicted <= FACTOR, found
