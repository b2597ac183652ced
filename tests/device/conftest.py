"""Runs of a module's selected tests on the device, in as few child processes as possible."""

from collections.abc import Mapping

import pytest

from lowering.isolate import Outcome
from tests.device.runs import on_device


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
def outcome(request, outcomes) -> Outcome:
    """The outcome of this test's run."""
    return outcomes[request.node.name]
