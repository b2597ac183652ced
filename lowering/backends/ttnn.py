"""ttnn as a backend: is every op of a Program accepted, and what does it cost on the device?

`check_mock` needs no hardware: ttnn's own validation, program creation and allocators run on a mock
of the chip, in a child process. What a mock cannot show: numbers, time, kernel code size.
`run_folder` runs a saved program on a card or simulator, and compares the results.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowering import mock
from lowering.ir import Arch, Op, Program, Value, from_json, to_json
from lowering.isolate import ChildError, call, each
from lowering.runtime.calls import make_call
from lowering.runtime.devices import arch_name, device_kind, import_ttnn, open_device
from lowering.runtime.executor import Caller
from lowering.runtime.folder import load_program
from lowering.runtime.tensors import allocate, describe
from lowering.runtime.verify import verify
from lowering.save import write_tensors


@dataclass(frozen=True, kw_only=True)
class OpReport:
    """What one op did on the device.

    `programs`: device programs that it launched, with the cores of each; `found`, `expected`:
    results as name, dtype, shape, layout and memory; `l1_bytes_per_core`: L1 in use while it ran;
    `error`: why it was rejected.
    """

    index: int
    name: str
    source: str
    programs: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    found: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    l1_bytes_per_core: int = 0
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and self.found == self.expected


@dataclass(frozen=True, kw_only=True)
class MockReport:
    """What a whole program did on the device; `errors` is empty when every op was accepted."""

    program: str
    arch: str
    kind: str
    ops: tuple[OpReport, ...] = ()
    errors: tuple[str, ...] = ()
    device_programs: int = 0
    ttnn_ops: int = 0
    layout_conversions: int = 0
    host_ops: tuple[str, ...] = ()
    peak_l1_bytes_per_core: int = 0
    peak_l1_op: int = 0
    dram_bytes: int = 0

    @property
    def ok(self) -> bool:
        return not self.errors

    def launches(self) -> dict[int, tuple[int, ...]]:
        """Op index -> cores of each device program, as `lowering.cost.estimate` takes it."""
        return {op.index: op.cores for op in self.ops if op.ok}

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return dataclasses.asdict(self)


def report_from_json(data: Mapping[str, Any]) -> MockReport:
    """The report that `MockReport.to_json` wrote."""
    ops = tuple(OpReport(**_with_tuples(op)) for op in data["ops"])
    return MockReport(**{**_with_tuples(data), "ops": ops})


def _with_tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def check_mock(
    source: Program | str | Path, arch: Arch | None = None, *, timeout: float = 300
) -> MockReport:
    """The program (or the one in a folder) on a mock of `arch` (default: the program's chip)."""
    program = source if isinstance(source, Program) else load_program(source)
    (report,) = check_many([program], arch or program.arch, timeout=timeout)
    return report


def check_many(
    programs: Sequence[Program], arch: Arch, *, timeout: float = 120
) -> list[MockReport]:
    """All programs on one mock device, in one child process; a crash costs one program."""
    cases = [to_json(program) for program in programs]
    env = mock.environment(arch)
    outcomes = each("lowering.backends.ttnn:check_cases", cases, env=env, timeout=timeout)
    return [
        report_from_json(outcome.value)
        if outcome.error is None
        else MockReport(program=program.name, arch=arch, kind="mock", errors=(outcome.error,))
        for program, outcome in zip(programs, outcomes, strict=True)
    ]


class RefusedOpError(ChildError):
    """A run that failed at the op of this index."""

    def __init__(self, index: int, text: str):
        super().__init__(text)
        self.index = index


def run_folder(
    directory: str | Path,
    *,
    golden: Mapping[str, np.ndarray] | None = None,
    timeout: float = 600,
) -> dict[str, Any]:
    """Metrics of a folder's sample on the device that the environment names, in a child process.

    `golden`: go op by op, and compare the values that it has numbers of. See
    `lowering.runtime.__main__.run_sample` for the result; ChildError when the run fails, or, op by
    op, RefusedOpError.
    """
    target = "lowering.runtime.__main__:run_directory"
    argument: dict[str, Any] = {"directory": str(directory), "golden": None}
    if golden is None:
        return call(target, argument, timeout=timeout)
    with tempfile.TemporaryDirectory(prefix="moejax-") as scratch:
        place, progress = Path(scratch) / "golden.safetensors", Path(scratch) / "progress"
        write_tensors(golden, place)
        try:
            files = {"golden": str(place), "progress": str(progress)}
            return call(target, argument | files, timeout=timeout)
        except ChildError as error:
            done = int(progress.read_text()) if progress.exists() else 0
            raise RefusedOpError(done, str(error)) from error


def describe_device(_: None = None) -> dict[str, Any]:
    """Chip and usable cores of the device that opens (call it in a child process)."""
    with open_device() as device:
        grid = device.compute_with_storage_grid_size()
        return {"kind": device_kind(), "arch": arch_name(device), "cores": [grid.x, grid.y]}


def check_cases(cases: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """The child's side of `check_many`: reports of programs given as JSON."""
    with open_device() as device:
        yield None
        for case in cases:
            yield _check(from_json(case), device).to_json()


def _check(program: Program, device: Any) -> MockReport:
    head: dict[str, Any] = {
        "program": program.name,
        "arch": arch_name(device),
        "kind": device_kind(),
    }
    try:
        verify(program)
    except ValueError as error:
        return MockReport(**head, errors=(str(error),))
    run = _Run(program, device)
    try:
        run.allocate((*program.inputs, *program.weights, *program.state))
    except RuntimeError as error:
        text = f"inputs, weights and state do not fit the device: {mock.fatal_text(str(error))}"
        return MockReport(**head, errors=(text,))
    ops = tuple(run.check(index, op) for index, op in enumerate(program.ops))
    peak = max(ops, key=lambda op: op.l1_bytes_per_core, default=None)
    return MockReport(
        **head,
        ops=ops,
        errors=tuple(_complaint(op) for op in ops if not op.ok),
        device_programs=sum(len(op.programs) for op in ops),
        ttnn_ops=len(ops),
        layout_conversions=sum(op.name == "to_layout" for op in program.ops),
        peak_l1_bytes_per_core=peak.l1_bytes_per_core if peak else 0,
        peak_l1_op=peak.index if peak else 0,
        dram_bytes=run.peak_dram,
    )


def _complaint(op: OpReport) -> str:
    place = f"op {op.index} {op.name}" + (f" ({op.source})" if op.source else "")
    if op.error is not None:
        return f"{place}: {op.error}"
    return f"{place}: gives {', '.join(op.found)}; expected {', '.join(op.expected)}"


class _Run:
    """A program going through a device op by op, with zeros in place of numbers."""

    def __init__(self, program: Program, device: Any):
        self._ttnn = ttnn = import_ttnn()
        self._device = device
        self._caller = Caller(ttnn, device)
        self._known = program.values()
        self._values: dict[str, Any] = {}
        self._reserved = self._dram()
        self.peak_dram = 0

    def allocate(self, values: Sequence[Value]) -> None:
        """Room for tensors, without numbers."""
        for value in values:
            tensor = allocate(self._ttnn, value, self._device)
            self._values[value.name] = tensor if value.shape else self._ttnn.reshape(tensor, ())
        self.peak_dram = max(self.peak_dram, self._dram() - self._reserved)

    def check(self, index: int, op: Op) -> OpReport:
        """Perform an op; where it fails, go on with what it should have given."""
        resident = self._l1_per_core()
        expected = tuple(map(str, op.outputs))
        head: dict[str, Any] = {
            "index": index,
            "name": op.name,
            "source": str(op.source),
            "expected": expected,
        }
        try:
            results, graph = self._perform(op)
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            self.allocate(op.outputs)
            report = OpReport(**head, error=mock.fatal_text(str(error)))
        else:
            programs = list(_programs(graph))
            usage = self._ttnn.graph.extract_resource_usage_per_core(graph)
            report = OpReport(
                **head,
                found=tuple(
                    str(describe(tensor, value.name))
                    for tensor, value in zip(results, op.outputs, strict=True)
                ),
                programs=tuple(name for name, _ in programs),
                cores=tuple(cores for _, cores in programs),
                l1_bytes_per_core=resident + usage.peak_total,
            )
            self._values.update(zip((v.name for v in op.outputs), results, strict=False))
            self.peak_dram = max(self.peak_dram, self._dram() - self._reserved)
            if report.found != expected:
                self.allocate(op.outputs)
        for name in op.frees:
            del self._values[name]
        return report

    def _perform(self, op: Op) -> tuple[list[Any], list[dict[str, Any]]]:
        """Results of the op, and its graph from a dry run: only that one shows kernels' buffers."""
        graph = self._ttnn.graph
        made = make_call(op, self._known)
        graph._cpp_begin_graph_capture(graph.RunMode.NO_DISPATCH)
        try:
            self._caller.perform(made, self._values)
        finally:
            captured = graph._cpp_end_graph_capture()
        return self._caller.perform(made, self._values), captured

    def _l1_per_core(self) -> int:
        view = self._ttnn.get_memory_view(self._device, self._ttnn.BufferType.L1)
        return view.total_bytes_allocated_per_bank

    def _dram(self) -> int:
        view = self._ttnn.get_memory_view(self._device, self._ttnn.BufferType.DRAM)
        return view.total_bytes_allocated_per_bank * view.num_banks


def _programs(graph: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    """Device programs of a captured graph, with the number of cores that have buffers for each."""
    cores: set[tuple[int, int]] = set()
    for node in graph:
        params = node["params"] or {}
        kind, name = node["node_type"], params.get("name", "")
        if kind == "function_start" and name.endswith("Operation"):
            cores = set()
        elif "core_range_set" in params:
            cores |= _cores(params["core_range_set"])
        elif kind == "function_end" and name.endswith("Operation"):
            yield name.removesuffix("Operation").removesuffix("Device"), len(cores)


def _cores(ranges: str) -> set[tuple[int, int]]:
    """Cores of a text such as "{[0-0 - 3-7], [4-0 - 4-2]}" (x-y of the first and last corner)."""
    found = re.findall(r"\[(\d+)-(\d+) - (\d+)-(\d+)\]", ranges)
    corners = [tuple(map(int, numbers)) for numbers in found]
    return {(x, y) for a, b, c, d in corners for x in range(a, c + 1) for y in range(b, d + 1)}
