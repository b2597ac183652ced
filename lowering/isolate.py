"""Run functions in child processes: another environment, a time limit, and a crash that costs one
case.

ttnn reads its environment once, and a wrong call can abort the whole process, so everything that
opens a device runs in a child. Arguments and results are JSON values.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from lowering.mock import apply, fatal_text

Environment = Mapping[str, str | None]


class ChildError(RuntimeError):
    """A child process failed, crashed or ran out of time; the text says how."""


@dataclass(frozen=True)
class Outcome:
    """Result of one case: a value, or the text of the error."""

    value: Any = None
    error: str | None = None


def call(
    target: str, argument: Any, *, env: Environment | None = None, timeout: float = 300
) -> Any:
    """`target` ("module:function") of `argument`, in a child process; ChildError if that fails."""
    with _start(target, argument, env) as child:
        outcome = child.receive(timeout)
    if outcome.error is not None:
        raise ChildError(outcome.error)
    return outcome.value


def each(
    target: str, cases: Sequence[Any], *, env: Environment | None = None, timeout: float = 120
) -> list[Outcome]:
    """Outcomes of all cases, as few child processes as possible.

    `target` names a generator function of a list of cases. It yields once when it is set up, and
    then one result for each case. A crash, an exception or `timeout` seconds without an answer cost
    one case; the rest go on in a new child. ChildError when the set-up itself fails.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(cases):
        with _start(target, list(cases[len(outcomes) :]), env, many=True) as child:
            ready = child.receive(timeout)
            if ready.error is not None:
                raise ChildError(ready.error)
            while len(outcomes) < len(cases):
                outcomes.append(child.receive(timeout))
                if outcomes[-1].error is not None:
                    break
    return outcomes


@dataclass
class _Child:
    process: subprocess.Popen
    connection: Connection
    log: Path

    def receive(self, timeout: float) -> Outcome:
        if not self.connection.poll(timeout):
            self._kill()
            return Outcome(error=f"no answer within {timeout:g} s{self._last_words()}")
        with contextlib.suppress(EOFError):
            return Outcome(**json.loads(self.connection.recv_bytes()))
        code = self.process.wait()
        end = f"signal {-code}" if code < 0 else f"exit status {code}"
        return Outcome(error=f"the child process ended with {end}{self._last_words()}")

    def end(self) -> None:
        """Let the child close its device; kill it if that takes too long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self._kill()
        self.process.wait()

    def _kill(self) -> None:
        """End the child and all that it started: ttnn compiles kernels in processes of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _last_words(self) -> str:
        text = self.log.read_text(errors="replace")
        text = text[text.rfind("critical") + 1 :] if "critical" in text else text
        return f": {fatal_text(text)[-1000:]}" if text.strip() else ""


@contextlib.contextmanager
def _start(target: str, argument: Any, env: Environment | None, *, many: bool = False):
    with tempfile.TemporaryDirectory(prefix="moejax-") as folder:
        job = Path(folder) / "job.json"
        log = Path(folder) / "log"
        fields = {"target": target, "argument": argument, "env": dict(env or {}), "many": many}
        job.write_text(json.dumps({**fields, "path": sys.path}))
        ours, theirs = Pipe(duplex=False)
        with ours, theirs, open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "lowering.isolate", str(job), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": _python_path()},
            )
            theirs.close()
            child = _Child(process, ours, log)
            try:
                yield child
            finally:
                child.end()


def _python_path() -> str:
    ours = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))


def _serve(job: Mapping[str, Any], connection: Connection) -> None:
    """The child's side: answer with one outcome, or one for each value that the target yields."""
    apply(job["env"])
    sys.path.extend(path for path in job["path"] if path not in sys.path)
    try:
        for value in _values(job):
            connection.send_bytes(json.dumps({"value": value}).encode())
    except Exception as error:
        text = f"{type(error).__name__}: {fatal_text(str(error))}"
        connection.send_bytes(json.dumps({"error": text}).encode())


def _values(job: Mapping[str, Any]) -> Iterator[Any]:
    module, _, name = job["target"].partition(":")
    function = getattr(importlib.import_module(module), name)
    if job["many"]:
        yield from function(job["argument"])
    else:
        yield function(job["argument"])


def main() -> None:
    job, descriptor = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)
    with Connection(int(descriptor), readable=False) as connection:
        _serve(json.loads(Path(job).read_text()), connection)


if __name__ == "__main__":
    main()
