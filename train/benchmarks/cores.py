"""Measuring in a process of its own that is held to some cores, with as many threads."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def run_on(cores: Sequence[int], module: str, argument: Any = None) -> Any:
    """What `python -m module ARGUMENT` prints last, JSON both ways; RuntimeError if it fails."""
    flags = os.environ.get("XLA_FLAGS", "")
    if len(cores) == 1:
        flags += " --xla_cpu_multi_thread_eigen=false"
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # a child keeps it, and XLA has a thread for each core
    try:
        found = subprocess.run(
            [sys.executable, "-m", module, json.dumps(argument)],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.sched_setaffinity(0, before)
    if found.returncode:
        raise RuntimeError(f"the measuring process failed:\n{found.stderr[-2000:]}")
    return json.loads(found.stdout.splitlines()[-1])
