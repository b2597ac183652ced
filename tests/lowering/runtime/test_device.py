"""The runtime's numbers on a card or the simulator."""

import pytest

from lowering.backends.ttnn import run_folder
from lowering.runtime.folder import load

pytestmark = [pytest.mark.device, pytest.mark.slow]


def test_small_program_computes_what_it_should(saved):
    report = run_folder(saved, golden=load(saved).golden())
    assert report["ops"]
    assert report["kind"] in ("card", "simulator")
    assert report["ok"]
    # float32 matmuls are cut to ten mantissa bits on the device
    assert all(row["relative_l2"] < 3e-3 for row in report["outputs"])
