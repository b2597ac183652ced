"""Opens whatever device there is: a card, a simulator or a mock, as the environment says."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

Kind = Literal["card", "simulator", "mock"]


def import_ttnn() -> Any:
    """The ttnn module; ImportError, saying what to install, where there is none."""
    try:
        import ttnn
    except ModuleNotFoundError as error:
        raise ImportError(
            "ttnn is not installed; it has wheels for Linux on x86-64 with Python 3.12:"
            " pip install ttnn==0.81.1"
        ) from error
    return ttnn


def device_kind() -> Kind:
    """What `open_device` will open, judged by tt-metal's environment variables."""
    if os.environ.get("TT_METAL_MOCK_CLUSTER_DESC_PATH"):
        return "mock"
    return "simulator" if os.environ.get("TT_METAL_SIMULATOR") else "card"


@contextlib.contextmanager
def open_device(*, command_queues: int = 1, trace_bytes: int = 0) -> Iterator[Any]:
    """The first device, closed at the end.

    `command_queues=2` lets a `Pipeline` send inputs while the device computes; `trace_bytes` is
    memory for recorded traces. FileNotFoundError where TT_METAL_SIMULATOR names no library.
    """
    if device_kind() == "simulator":
        _prepare_simulator(Path(os.environ["TT_METAL_SIMULATOR"]))
    ttnn = import_ttnn()
    device = ttnn.open_device(
        device_id=0, num_command_queues=command_queues, trace_region_size=trace_bytes
    )
    try:
        yield device
    finally:
        ttnn.close_device(device)


def _prepare_simulator(library: Path) -> None:
    """Before ttnn is imported: what the simulator lacks is left out, unless the user says else."""
    for path in (library, library.parent / "soc_descriptor.yaml"):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; TT_METAL_SIMULATOR must name the simulator's library,"
                " with the chip's soc_descriptor.yaml beside it"
            )
    for switch in ("TT_METAL_SLOW_DISPATCH_MODE", "TT_METAL_DISABLE_SFPLOADMACRO"):
        os.environ.setdefault(switch, "1")


def arch_name(device: Any) -> str:
    """ "wormhole_b0" or "blackhole"."""
    return str(device.arch()).rpartition(".")[2].lower()
