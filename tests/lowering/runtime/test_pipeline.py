"""Double-buffered input and recorded traces on a stand-in whose queues run as late as allowed."""

import numpy as np
import pytest

from lowering.runtime import Pipeline, Session, open_device


def run(small, **options):
    batches = [small.batch(seed) for seed in range(6)]
    with open_device(command_queues=2, trace_bytes=1 << 20) as device:
        session = Session(small.program, small.weights, device)
        with Pipeline(session, **options) as pipeline:
            found = list(pipeline.map(batches))
    return found, [small.expected(batch) for batch in batches]


@pytest.mark.parametrize(
    "options",
    [{"queues": 1}, {"queues": 2}, {"queues": 1, "trace": True}, {"queues": 2, "trace": True}],
)
@pytest.mark.parametrize("ahead", [0, 1])
def test_results_come_in_order(fake, small, options, ahead):
    fake.DEVICE.ahead = ahead
    for found, expected in zip(*run(small, **options), strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert not fake.DEVICE.traces
    assert fake.DEVICE.log[0] == (
        "open",
        {
            "device_id": 0,
            "num_command_queues": 2,
            "trace_region_size": 1 << 20,
        },
    )


def test_events_are_what_keeps_the_queues_apart(fake, small, monkeypatch):
    monkeypatch.setattr(fake, "wait_for_event", lambda queue, event: None)
    fake.DEVICE.ahead = 0
    found, expected = run(small, queues=2)
    assert any(not np.allclose(a[0], b[0]) for a, b in zip(found, expected, strict=True))


def test_no_batches(fake, small):
    with open_device() as device:
        session = Session(small.program, small.weights, device)
        assert list(Pipeline(session, queues=1).map([])) == []


def test_trace_on_a_mock_is_refused(fake, small, monkeypatch):
    monkeypatch.setenv("TT_METAL_MOCK_CLUSTER_DESC_PATH", "x.yaml")
    with open_device() as device:
        session = Session(small.program, small.weights, device)
        with pytest.raises(RuntimeError, match="a mock device cannot record traces"):
            Pipeline(session, trace=True)


def test_number_of_queues_is_checked(fake, small):
    with open_device() as device:
        session = Session(small.program, small.weights, device)
        with pytest.raises(ValueError, match="queues is 3"):
            Pipeline(session, queues=3)


def test_unfit_batch_is_named(fake, small):
    with open_device() as device:
        session = Session(small.program, small.weights, device)
        with pytest.raises(ValueError, match=r"missing: \['scale'\]"):
            list(Pipeline(session, queues=1).map([{"x": small.batch(0)["x"]}]))
