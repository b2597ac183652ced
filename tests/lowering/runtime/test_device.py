"""The runtime's numbers on a card or the simulator: MOEJAX_DEVICE=1 asks for one."""

import os
from pathlib import Path

import pytest

from lowering.backends.ttnn import run_folder

pytestmark = [pytest.mark.device, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _device():
    present = os.environ.get("TT_METAL_SIMULATOR") or Path("/dev/tenstorrent").exists()
    if not present and os.environ.get("MOEJAX_DEVICE"):
        pytest.fail("MOEJAX_DEVICE is set, but there is neither a card nor TT_METAL_SIMULATOR")
    if not present:
        pytest.skip("needs a Tenstorrent card or the simulator (TT_METAL_SIMULATOR)")


def test_small_program_computes_what_it_should(saved):
    report = run_folder(saved, per_op=True)
    assert report["kind"] in ("card", "simulator")
    assert report["ok"]
    # float32 matmuls are cut to ten mantissa bits on the device
    assert all(row["relative_l2"] < 3e-3 for row in report["outputs"])
