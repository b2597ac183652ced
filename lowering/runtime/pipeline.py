"""Runs batch after batch with the next batch's inputs already on their way.

Two sets of input tensors lie on the device. While the device computes on one, a second command
queue fills the other; with `trace=True` the ops themselves are recorded once per set and replayed,
so that the host sends one command a batch.

What has been verified without a card: the mock device runs the double-buffered path (tensors are
written in place and read back in order). It has no events, so waiting between the two queues is
left out there, and it cannot record traces at all. Both are unverified until they run on a card.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lowering.runtime.devices import device_kind, import_ttnn
from lowering.runtime.executor import Session, check_names
from lowering.runtime.tensors import allocate, to_host_tensor

COMPUTE, TRANSFER = 0, 1


class Pipeline:
    """A session with two sets of input tensors.

    `queues=2` needs a device opened with `command_queues=2`, `trace=True` one opened with
    `trace_bytes`. Use as a context manager: recorded traces are released at the end.
    """

    def __init__(self, session: Session, *, queues: int = 2, trace: bool = False):
        """RuntimeError for `trace` on a mock device, which crashes when it records one."""
        if queues not in (1, 2):
            raise ValueError(f"queues is {queues}; a device has 1 or 2")
        kind = device_kind()
        if trace and kind != "card":
            raise RuntimeError(f"a {kind} device cannot record traces; run with trace=False")
        self._slots = [_Slot(session, queues, events=kind == "card") for _ in range(2)]
        self._session = session
        if trace:
            for slot in self._slots:
                slot.record()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self._slots:
            slot.release()

    def map(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Outputs of each batch in order; each batch holds every input by name."""
        running: list[Any] | None = None
        for index, batch in enumerate(batches):
            slot = self._slots[index % 2]
            slot.write(batch)
            if running is not None:
                yield self._session.download(running)
            running = slot.launch()
        if running is not None:
            yield self._session.download(running)


class _Slot:
    """One set of input tensors, and the ops that read them."""

    def __init__(self, session: Session, queues: int, *, events: bool):
        self._ttnn = ttnn = import_ttnn()
        self._session = session
        self._queue = TRANSFER if queues == 2 else COMPUTE
        self._events = events and queues == 2
        self._buffers = {
            value.name: allocate(ttnn, value, session.device) for value in session.program.inputs
        }
        self._inputs = {
            value.name: self._buffers[value.name]
            if value.shape
            else ttnn.reshape(self._buffers[value.name], ())
            for value in session.program.inputs
        }
        self._trace: Any = None
        self._outputs: list[Any] = []
        self._written: Any = None
        self._read: Any = None

    def write(self, batch: Mapping[str, np.ndarray]) -> None:
        """Send a batch, once the ops of the set's previous batch have read it."""
        ttnn, values = self._ttnn, self._session.program.inputs
        check_names(values, batch)
        if self._read is not None:
            ttnn.wait_for_event(self._queue, self._read)
        for value in values:
            host = to_host_tensor(ttnn, batch[value.name], value)
            ttnn.copy_host_to_device_tensor(host, self._buffers[value.name], cq_id=self._queue)
        if self._events:
            self._written = ttnn.record_event(self._session.device, self._queue)

    def launch(self) -> list[Any]:
        """Start the ops, and return their outputs (still being computed on a card)."""
        ttnn, device = self._ttnn, self._session.device
        if self._written is not None:
            ttnn.wait_for_event(COMPUTE, self._written)
        if self._trace is None:
            outputs = self._session.execute(self._inputs)
        else:
            ttnn.execute_trace(device, self._trace, cq_id=COMPUTE, blocking=False)
            outputs = self._outputs
        if self._events:
            self._read = ttnn.record_event(device, COMPUTE)
        return outputs

    def record(self) -> None:
        """Record the ops on this set: once plainly, so that all kernels exist, then as a trace."""
        ttnn, device = self._ttnn, self._session.device
        self._session.execute(self._inputs)
        trace = ttnn.begin_trace_capture(device, cq_id=COMPUTE)
        try:
            self._outputs = self._session.execute(self._inputs)
        finally:
            ttnn.end_trace_capture(device, trace, cq_id=COMPUTE)
        self._trace = trace

    def release(self) -> None:
        if self._trace is not None:
            self._ttnn.release_trace(self._session.device, self._trace)
            self._trace = None
