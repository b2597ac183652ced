"""Runs of a module's selected tests on the device, in as few child processes as possible."""

from collections.abc import Mapping

import pytest

from lowering.isolate import Outcome
from lowering.runtime.devices import device_kind
from tests.device.runs import Measured, on_device


@pytest.fixture(scope="module")
def outcomes(request) -> Mapping[str, Outcome]:
    """Outcome by the name of a test, for every selected test of the module that has parameters.

    The module's `make_run` gives the run of them.
    """
    chosen = {
        item.name: item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    }
    runs = [request.module.make_run(**parameters) for parameters in chosen.values()]
    return dict(zip(chosen, on_device(runs), strict=True))


@pytest.fixture
def measured(request, outcomes, record_property) -> Measured:
    """What this test's run measured, which is also a row of the table.

    The test's parameters are a name and a policy. The module's `NO_KERNEL` has the policies, by
    name, under which there is a kernel that no compiler for the simulator could build; it is ttnn's
    own, and runs on a card.
    """
    module, outcome = request.module, outcomes[request.node.name]
    row = {"section": module.SECTION, **request.node.callspec.params}
    if (
        outcome.error
        and row["policy"] in module.NO_KERNEL.get(row["name"], ())
        and device_kind() == "simulator"
    ):
        record_property("device", {**row, "error": "kernel not built"})
        pytest.xfail("no compiler for the simulator builds a kernel of it")
    assert outcome.error is None, outcome.error
    record_property("device", row | vars(outcome.value))
    return outcome.value
