"""Functions that the tests run on a mock device, in child processes."""

import gc

import numpy as np

from lowering.runtime import Pipeline, Session, load, open_device


def pipeline(directory):
    """Shapes and dtypes of five batches through a double-buffered pipeline."""
    folder = load(directory)
    with open_device(command_queues=2) as device:
        session = Session(folder.program, folder.weights, device)
        with Pipeline(session) as batches:
            results = list(batches.map(folder.inputs() for _ in range(5)))
        del session
    return [[[list(a.shape), str(a.dtype)] for a in result] for result in results]


def leak(directory):
    """L1 and DRAM bytes in use before and after ten runs."""
    import ttnn

    folder = load(directory)

    def used():
        gc.collect()
        kinds = (ttnn.BufferType.L1, ttnn.BufferType.DRAM)
        return [ttnn.get_memory_view(device, k).total_bytes_allocated_per_bank for k in kinds]

    with open_device() as device:
        session = Session(folder.program, folder.weights, device)
        session.run(folder.inputs())
        before = used()
        for _ in range(10):
            session.run(folder.inputs())
        after = used()
        del session
    return [before, after]


def kinds(_):
    """What comes back from the device for each dtype, layout and rank."""
    import ttnn

    from lowering.ir import FLOATS, Value
    from lowering.runtime.tensors import describe, to_device, to_numpy

    found = []
    with open_device() as device:
        for dtype in ("float32", "bfloat16", "bfloat8_b", "int32", "uint32", "uint16"):
            for shape in ((), (5,), (3, 4), (2, 3, 33, 7)):
                for layout in ("tile", "row_major"):
                    for memory in ("dram", "l1"):
                        if (dtype, layout) == ("bfloat8_b", "row_major"):
                            continue
                        if shape == () and dtype == "uint16":
                            continue
                        value = Value("v", shape, dtype, layout, memory)
                        array = np.zeros(shape, np.float32 if dtype in FLOATS else np.int32)
                        array.setflags(write=False)  # as those of JAX are
                        tensor = to_device(ttnn, array, value, device)
                        back = to_numpy(ttnn, tensor)
                        same = describe(tensor, "v") == value
                        found.append([str(value), same, list(back.shape), str(back.dtype)])
                        del tensor
    return found
