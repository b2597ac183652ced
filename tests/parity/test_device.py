"""P4 of the parity ladder: every model on a card or the simulator, op by op."""

import pytest
from cases import CASES as FUNCTIONS
from moirai_cases import forecaster

import lowering
from lowering import parity
from lowering.runtime.devices import device_kind

CASES = {**FUNCTIONS, "moirai-moe": lambda: forecaster("mixture")}


@pytest.mark.device
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", parity.POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_numbers_on_the_device(name, policy, tmp_path):
    """P2's thresholds; and the error that the reference backend predicts is of the right size."""
    function, params, inputs = CASES[name]()
    lowering.export(function, params, inputs, tmp_path / "p", policy=policy, check="none")
    (predicted,) = parity.check_folder(tmp_path / "p")[-1:]
    (report,) = parity.check_folder(tmp_path / "p", backend="ttnn", bisect=True)
    assert device_kind() != "mock"
    assert report.ok, str(report)
    assert report.first_failure is None, str(report)
    for found, expected in zip(report.outputs, predicted.outputs, strict=True):
        assert found.metrics.relative_l2 <= 3 * expected.metrics.relative_l2
