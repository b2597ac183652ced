"""Calls of programs on a device, beside what the reference backend says of the same calls.

Everything that opens a device runs in a child process: a call that ends it costs one run.
"""

import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lowering.backends.reference import HostSession, Mode
from lowering.ir import Program
from lowering.isolate import Outcome, each
from lowering.ops import Fidelity
from lowering.runtime.devices import open_device
from lowering.runtime.executor import Session
from lowering.runtime.metrics import Metrics, compare

TIMEOUT = 900  # seconds of one run, in which kernels are compiled
Results = list[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the program named `part`; `expected`: its results, those that are known."""

    part: str
    inputs: Mapping[str, np.ndarray]
    expected: Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Calls in order. Programs share weights and state of one name; `before` and `after`: the
    state; `fidelity`: of every op that multiplies, instead of its own.
    """

    programs: Mapping[str, Program]
    calls: Sequence[Call]
    before: Mapping[str, np.ndarray] = field(default_factory=dict)
    after: Mapping[str, np.ndarray] = field(default_factory=dict)
    fidelity: Fidelity | None = None

    def expected(self) -> Results:
        """What JAX computes."""
        return [array for call in self.calls for array in call.expected] + [*self.after.values()]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The worst result of a run; `predicted`: relative L2 error of the reference backend."""

    pcc: float
    relative_l2: float
    max_abs: float
    predicted: float
    seconds: float


def on_device(runs: Sequence[Run]) -> list[Outcome]:
    """`Measured` of each run, or the error that ended it."""
    with tempfile.TemporaryDirectory(prefix="moejax-") as folder:
        paths = [Path(folder) / str(index) for index in range(len(runs))]
        for path, run in zip(paths, runs, strict=True):
            path.write_bytes(pickle.dumps(run))
        found = each("tests.device.runs:perform_all", [*map(str, paths)], timeout=TIMEOUT)
        return [
            outcome if outcome.error else Outcome(_measured(run, path, outcome.value))
            for run, path, outcome in zip(runs, paths, found, strict=True)
        ]


def on_host(run: Run, mode: Mode) -> Results:
    """The results on the reference backend."""
    return perform(run, lambda program, first: HostSession(program, program.arrays, mode, first))


def _measured(run: Run, path: Path, seconds: float) -> Measured:
    found = pickle.loads(path.with_suffix(".out").read_bytes())
    device, host = (
        [compare(array, wanted) for array, wanted in zip(results, run.expected(), strict=True)]
        for results in (found, on_host(run, "device"))
    )
    return Measured(
        pcc=min(m.pcc for m in device),
        relative_l2=_worst(device),
        max_abs=max(m.max_abs for m in device),
        predicted=_worst(host),
        seconds=seconds,
    )


def _worst(metrics: Sequence[Metrics]) -> float:
    return max(m.relative_l2 for m in metrics)


def perform(run: Run, open_session: Callable[[Program, Any], Any]) -> Results:
    """Results of all calls, then the state, as far as they are known."""
    sessions: dict[str, Any] = {}
    for part, program in run.programs.items():
        sessions[part] = open_session(program, next(iter(sessions.values()), None))
    first = next(iter(sessions.values()))
    first.set_state(run.before)
    results: Results = []
    for call in run.calls:
        results += sessions[call.part].run(call.inputs)[: len(call.expected)]
    state = first.state()
    return results + [state[name] for name in run.after]


def _sessions(device: Any, fidelity: Fidelity | None) -> Callable[[Program, Any], Session]:
    return lambda program, first: Session(program, program.arrays, device, first, fidelity)


def perform_all(paths: Sequence[str]) -> Iterator[float | None]:
    """The child's side: leaves results beside each pickled run; yields seconds."""
    with open_device() as device:
        yield None
        for path in map(Path, paths):
            run, start = pickle.loads(path.read_bytes()), time.perf_counter()
            results = perform(run, _sessions(device, run.fidelity))
            path.with_suffix(".out").write_bytes(pickle.dumps(results))
            yield time.perf_counter() - start
