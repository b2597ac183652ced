"""Functions that the tests of lowering.isolate run in child processes."""

import os
import subprocess
import sys
import time
from pathlib import Path


def echo(argument):
    return {"argument": argument, "variable": os.environ.get("MOEJAX_TEST")}


def fail(argument):
    raise ValueError(f"no use for {argument}")


def crash(_):
    print("critical TT_FATAL: something is wrong\ninfo:\nthe device is gone\nbacktrace:\n 1. f")
    sys.stdout.flush()
    os.abort()


def hang(_):
    time.sleep(60)


def hang_with_a_helper(place):
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(place).write_text(str(helper.pid))
    time.sleep(60)


def squares(cases):
    yield "ready"
    for case in cases:
        if case == "abort":
            os.abort()
        if case == "sleep":
            time.sleep(60)
        yield case * case


def never_ready(cases):
    raise RuntimeError("no device")
    yield from cases
