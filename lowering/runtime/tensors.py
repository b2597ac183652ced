"""Moves numpy arrays to the device and back, without torch and without ml_dtypes."""

from typing import Any, cast

import numpy as np

from lowering.ir import FLOATS, DType, Value

INTEGERS = {"int32": np.int32, "uint32": np.uint32, "uint16": np.uint16}


def host_array(array: np.ndarray, value: Value) -> np.ndarray:
    """The array in the dtype that ttnn converts from; ValueError when it does not fit the value."""
    array = np.asarray(array)
    if array.shape != value.shape:
        raise ValueError(f"{value.name!r} has shape {array.shape}; the program takes {value}")
    if value.dtype in FLOATS:
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{value.name!r} has dtype {array.dtype}; the program takes {value}")
        return _own(array, np.float32)
    if array.dtype.kind not in "iub":
        raise ValueError(f"{value.name!r} has dtype {array.dtype}; the program takes {value}")
    return _own(array, INTEGERS[value.dtype])


def _own(array: np.ndarray, dtype: type) -> np.ndarray:
    """ttnn takes contiguous arrays that may be written to; those of JAX may not."""
    return np.require(array, dtype, ["C_CONTIGUOUS", "WRITEABLE"])


def to_host_tensor(ttnn: Any, array: np.ndarray, value: Value) -> Any:
    """A ttnn tensor on the host, in the value's dtype and layout."""
    # ttnn takes no array of rank 0, and aborts on float64: host_array has made it float32
    array = host_array(array, value).reshape(value.shape or (1,))
    tensor = ttnn.Tensor(array, getattr(ttnn, value.dtype))
    if value.dtype == "bfloat8_b":
        return tensor
    return tensor.to(layout(ttnn, value.layout))


def to_device(ttnn: Any, array: np.ndarray, value: Value, device: Any) -> Any:
    """A device tensor of the value's shape, dtype, layout and memory."""
    host = to_host_tensor(ttnn, array, value)
    tensor = ttnn.to_device(host, device, memory_config=memory(ttnn, value.memory))
    return tensor if value.shape else ttnn.reshape(tensor, ())


def allocate(ttnn: Any, value: Value, device: Any) -> Any:
    """An uninitialised device tensor for the value; rank 0 is held as rank 1."""
    return ttnn.allocate_tensor_on_device(
        ttnn.Shape(value.shape or (1,)),
        getattr(ttnn, value.dtype),
        layout(ttnn, value.layout),
        device,
        memory(ttnn, value.memory),
    )


def to_numpy(ttnn: Any, tensor: Any) -> np.ndarray:
    """A device tensor as float32 or integers."""
    host = tensor.cpu()
    if host.dtype not in (ttnn.bfloat8_b, ttnn.bfloat4_b):
        host = host.to(ttnn.ROW_MAJOR_LAYOUT)
    if host.dtype == ttnn.bfloat16:
        host = ttnn.to_dtype(host, ttnn.float32)
    return np.asarray(host.to_numpy())


def layout(ttnn: Any, name: str) -> Any:
    return ttnn.TILE_LAYOUT if name == "tile" else ttnn.ROW_MAJOR_LAYOUT


def memory(ttnn: Any, name: str) -> Any:
    return ttnn.L1_MEMORY_CONFIG if name == "l1" else ttnn.DRAM_MEMORY_CONFIG


def describe(tensor: Any, name: str = "") -> Value:
    """A ttnn tensor in the program's words."""
    dtype = str(tensor.dtype).rpartition(".")[2].lower()
    rows = "ROW_MAJOR" in str(tensor.layout)
    config = tensor.memory_config()
    place = "l1" if "L1" in str(config.buffer_type) else "dram"
    return Value(
        name,
        tuple(tensor.shape),
        cast(DType, dtype),
        "row_major" if rows else "tile",
        "rows" if config.is_sharded() else place,
    )
