"""Memory asked for before it is taken: a huge horizon is an error, not a killed process."""

import os
from pathlib import Path

_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def available_bytes() -> int:
    """Bytes free on this machine, or what its container may have at all where that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        free *= 1024
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(free, int(_CONTAINER.read_text()))
    except (OSError, ValueError):
        return free


def require_memory(num_bytes: int, what: str, advice: str) -> None:
    """ValueError where `what` takes more than what is there."""
    available = available_bytes()
    if num_bytes > available:
        raise ValueError(
            f"{what} takes about {num_bytes / 2**30:,.1f} GiB, but {available / 2**30:,.1f} GiB "
            f"are free; {advice}"
        )


def require_samples_fit(
    num_samples: int, prediction_length: int, num_targets: int, itemsize: int = 4
) -> None:
    """ValueError where the samples of all targets of all series, and a copy, do not fit."""
    require_memory(
        2 * itemsize * num_samples * prediction_length * num_targets,
        f"{num_samples} samples of {prediction_length} steps of {num_targets} targets",
        "forecast fewer steps, samples or series at a time",
    )
