"""A stand-in for the ttnn module: numpy arithmetic, and command queues that run as late as allowed.

Commands wait in their queue until something is read; then one queue runs as far ahead as its events
let it. A missing wait between the queues therefore gives wrong numbers for one choice of `ahead`.
"""

# ruff: noqa: N802

from collections import deque
from types import SimpleNamespace

import numpy as np

TILE_LAYOUT, ROW_MAJOR_LAYOUT = "Layout.TILE", "Layout.ROW_MAJOR"
float32, bfloat16, bfloat8_b, bfloat4_b, int32, uint32, uint16 = (
    f"DataType.{name}"
    for name in ("FLOAT32", "BFLOAT16", "BFLOAT8_B", "BFLOAT4_B", "INT32", "UINT32", "UINT16")
)
L1_MEMORY_CONFIG = SimpleNamespace(buffer_type="BufferType.L1")
DRAM_MEMORY_CONFIG = SimpleNamespace(buffer_type="BufferType.DRAM")
MathFidelity = SimpleNamespace(**{name: name for name in ("LoFi", "HiFi2", "HiFi3", "HiFi4")})
UnaryOpType = SimpleNamespace(RELU="relu")


def Shape(sizes):
    return tuple(sizes)


def CoreGrid(*, y, x):
    return (y, x)


def UnaryWithParam(kind):
    return kind


def WormholeComputeKernelConfig(**fields):
    return fields


class Cell:
    """Memory that several tensors may share."""

    def __init__(self, data=None):
        self.data = data


class Tensor:
    def __init__(self, array, dtype, layout=ROW_MAJOR_LAYOUT, cell=None, memory=None):
        self.cell = cell or Cell(None if array is None else np.array(array, np.float32))
        self.shape = array.shape if cell is None else None
        self.dtype, self.layout, self._memory = dtype, layout, memory

    def to(self, layout):
        return Tensor(self.numpy(), self.dtype, layout)

    def numpy(self):
        return self.cell.data.reshape(self.shape)

    def memory_config(self):
        return self._memory

    def cpu(self):
        DEVICE.drain()
        return Tensor(self.numpy(), self.dtype, self.layout)

    def to_numpy(self):
        return self.numpy()


class Device:
    """Two queues, and traces; `events` counts what has happened."""

    ahead = 1

    def __init__(self):
        self.queues = (deque(), deque())
        self.recorded = set()
        self.events = 0
        self.capturing = None
        self.traces = {}
        self.log = []

    def enqueue(self, command, queue=0):
        if self.capturing is not None:
            self.capturing.append(command)
        self.queues[queue].append(command)

    def drain(self):
        """Finish the compute queue; the other goes only as far as it gets, or has to."""
        ahead, behind = self.queues[self.ahead], self.queues[1 - self.ahead]
        while self.queues[0]:
            before = len(ahead) + len(behind)
            while ahead and ahead[0]():
                ahead.popleft()
            if self.queues[0] and behind and behind[0]():
                behind.popleft()
            assert len(ahead) + len(behind) < before, "the queues wait for each other"

    def arch(self):
        return "Arch.WORMHOLE_B0"

    def compute_with_storage_grid_size(self):
        return SimpleNamespace(x=8, y=8)


DEVICE = Device()


def open_device(**options):
    DEVICE.__init__()
    DEVICE.log.append(("open", options))
    return DEVICE


def close_device(device):
    device.log.append(("close",))


def to_dtype(tensor, dtype):
    return Tensor(tensor.numpy(), dtype, tensor.layout)


def to_device(tensor, device, memory_config=None):
    return Tensor(tensor.numpy(), tensor.dtype, tensor.layout, memory=memory_config)


def allocate_tensor_on_device(shape, dtype, layout, device, memory_config):
    return Tensor(np.full(shape, np.nan, np.float32), dtype, layout, memory=memory_config)


def copy_host_to_device_tensor(host, tensor, cq_id=0):
    data = host.numpy().copy()

    def copy():
        tensor.cell.data = data
        return True

    DEVICE.enqueue(copy, cq_id)


def record_event(device, queue):
    device.events += 1
    event = device.events

    def record():
        device.recorded.add(event)
        return True

    device.enqueue(record, queue)
    return event


def wait_for_event(queue, event):
    DEVICE.enqueue(lambda: event in DEVICE.recorded, queue)


def begin_trace_capture(device, cq_id=0):
    device.capturing = []
    return len(device.traces)


def end_trace_capture(device, trace, cq_id=0):
    device.traces[trace], device.capturing = device.capturing, None


def execute_trace(device, trace, cq_id=0, blocking=True):
    assert not blocking
    for command in device.traces[trace]:
        device.enqueue(command, cq_id)


def release_trace(device, trace):
    del device.traces[trace]
    device.log.append(("release", trace))


def _op(shape, inputs, compute, dtype=None, memory_config=None):
    result = Tensor(None, dtype or inputs[0].dtype, TILE_LAYOUT, cell=Cell(), memory=memory_config)
    result.shape = shape

    def run():
        result.cell.data = compute(*(tensor.numpy() for tensor in inputs))
        return True

    DEVICE.enqueue(run)
    return result


def reshape(tensor, shape, memory_config=None):
    view = Tensor(None, tensor.dtype, tensor.layout, cell=tensor.cell, memory=tensor._memory)
    view.shape = tuple(shape)
    return view


def linear(a, b, *, bias=None, activation=None, core_grid=None, compute_kernel_config, **rest):
    assert compute_kernel_config["fp32_dest_acc_en"]
    shape = (*a.shape[:-1], b.shape[-1])

    def compute(a, b, *bias):
        y = a @ b + (bias[0] if bias else 0)
        return np.maximum(y, 0) if activation == "relu" else y

    return _op(shape, [a, b] if bias is None else [a, b, bias], compute, **rest)


def multiply(a, b, *, activations=(), **rest):
    tensors = [a, b] if isinstance(b, Tensor) else [a]
    shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))

    def compute(x, *y):
        z = x * (y[0] if y else b)
        return np.maximum(z, 0) if "relu" in activations else z

    return _op(shape, tensors, compute, **rest)


def topk(x, k, *, dim, largest, sorted, stable):
    assert (dim, largest, sorted, stable) == (-1, True, True, True)
    shape = (*x.shape[:-1], k)
    return (
        _op(shape, [x], lambda x: -np.sort(-x, axis=-1)[..., :k]),
        _op(shape, [x], lambda x: np.argsort(-x, axis=-1, kind="stable")[..., :k], dtype=uint16),
    )


def where(condition, a, b, **rest):
    tensors = [condition, *(x for x in (a, b) if isinstance(x, Tensor))]

    def compute(condition, *branches):
        branches = iter(branches)
        picked = [next(branches) if isinstance(x, Tensor) else x for x in (a, b)]
        return np.where(condition, *picked)

    return _op(np.broadcast_shapes(*(t.shape for t in tensors)), tensors, compute, **rest)


def concat(tensors, dim, **rest):
    shape = np.concatenate([np.zeros(tensor.shape) for tensor in tensors], dim).shape
    return _op(shape, tensors, lambda *arrays: np.concatenate(arrays, dim), **rest)
