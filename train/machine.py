"""What ran the numbers: processor, cores, versions. For reports and measurements."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("moejax", "jax", "jaxlib", "flax", "optax", "numpy", "ttnn")


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, system, versions of what computes."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
