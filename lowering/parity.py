"""Is a program the same function as the JAX one? Levels, thresholds, and where it goes wrong.

P1 exact: float32 arithmetic, within 1e-5 of the output's scale. P2 rounding: device dtypes and
rounding emulated. P3 legality: every op accepted by ttnn's mock device. P4 device: a card or the
simulator. P0, the model against published numbers, is `moejax check-reference`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lowering.api import Lowered, lower_graph_of
from lowering.backends import reference
from lowering.graph import Graph
from lowering.ir import Arch, Op, Policy, Program
from lowering.runtime.folder import Sample, load
from lowering.runtime.metrics import Metrics, compare
from lowering.sample import make_sample
from lowering.trace import trace

Level = Literal["P1", "P2", "P4"]
POLICIES: tuple[Policy, ...] = ("float32", "bfloat16", "bfloat8_b")
PARITY = "parity.json"
EXACT = 1e-5  # of the output's scale
LEAST_PCC: dict[Policy, float] = {"float32": 0.999, "bfloat16": 0.999, "bfloat8_b": 0.99}
LEVELS: tuple[Literal["P1", "P2"], ...] = ("P1", "P2")
MODES: dict[Level, reference.Mode] = {"P1": "exact", "P2": "device"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One compared value. `op` is its index in the program, None for an output.

    `predicted`: on a device, the relative L2 error that the reference backend foretells.
    """

    name: str
    metrics: Metrics
    ok: bool
    predicted: float | None = None
    op: int | None = None
    call: str = ""
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        head = {"name": self.name, "op": self.op, "call": self.call, "source": self.source}
        return {**head, **asdict(self.metrics), "ok": self.ok, "predicted": self.predicted}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outputs, and each op that could be compared, at one level and policy."""

    level: Level
    policy: Policy
    backend: str
    outputs: tuple[Row, ...]
    ops: tuple[Row, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.outputs)

    @property
    def first_failure(self) -> Row | None:
        """The first op that leaves the tolerance."""
        return next((row for row in self.ops if not row.ok), None)

    def to_json(self) -> dict[str, Any]:
        first = self.first_failure
        return {
            "level": self.level,
            "policy": self.policy,
            "backend": self.backend,
            "ok": self.ok,
            "outputs": [row.to_json() for row in self.outputs],
            "ops": [row.to_json() for row in self.ops],
            "first_failure": first.to_json() if first else None,
        }

    def __str__(self) -> str:
        lines = [f"{self.level} {self.policy} on {self.backend}: {'ok' if self.ok else 'FAILED'}"]
        lines += [f"  {_text(row)}" for row in self.outputs]
        if not self.ok and self.first_failure is not None:
            lines.append(f"  first op out of tolerance: {_text(self.first_failure)}")
        return "\n".join(lines)


def _text(row: Row) -> str:
    m = row.metrics
    numbers = f"PCC {m.pcc:.6f}, relative L2 {m.relative_l2:.2e}, max abs {m.max_abs:.2e}"
    if row.predicted is not None:
        numbers += f" (predicted: relative L2 {row.predicted:.2e})"
    place = f" = {row.call}  ({row.source})" if row.call else ""
    return f"{row.name}{place}: {numbers}"


def within(metrics: Metrics, level: Level, policy: Policy) -> bool:
    """Whether a value is inside the tolerance of its level and policy.

    P1: largest error against the scale; else `close`.
    """
    if level == "P1":
        return metrics.max_abs <= EXACT * max(metrics.scale, 1e-30)
    return close(metrics.pcc, metrics.relative_l2, policy)


def close(pcc: float, relative_l2: float, policy: Policy) -> bool:
    """Whether a correlation and a norm-wise error are those of a policy's rounding.

    The error may be what the least correlation stands for, since correlation alone hides scale and
    offset; a constant has only the former.
    """
    least = LEAST_PCC[policy]
    return relative_l2 <= math.sqrt(2 * (1 - least)) and (pcc >= least or relative_l2 <= 1e-2)


def check_program(
    program: Program,
    sample: Sample,
    level: Literal["P1", "P2"],
    golden: Mapping[str, np.ndarray] | None = None,
    on_op: reference.OnOp | None = None,
) -> Report:
    """A program on the reference backend against its sample, and each op against `golden`.

    `on_op`: see `reference.run`.
    """
    rows: list[Row] = []

    def compare_op(op: Op, results: Sequence[np.ndarray]) -> None:
        rows.extend(op_rows(len(seen), op, results, golden or {}, level, program.policy))
        seen.append(op)
        if on_op is not None:
            on_op(op, results)

    seen: list[Op] = []
    state = dict(sample.before)
    found = reference.run(program, sample.inputs, MODES[level], compare_op, state)
    outputs = output_rows(found, sample.outputs, level, program.policy)
    kept = [state[name] for name in sample.after]
    outputs += output_rows(kept, [*sample.after.values()], level, program.policy, [*sample.after])
    return Report(
        level=level, policy=program.policy, backend="reference", outputs=outputs, ops=tuple(rows)
    )


def output_rows(
    found: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    level: Level,
    policy: Policy,
    names: Sequence[str] | None = None,
) -> tuple[Row, ...]:
    """A row an output, called output.0 and so on unless `names` are given."""
    rows = []
    names = names or [f"output.{index}" for index in range(len(found))]
    for name, array, wanted in zip(names, found, expected, strict=True):
        metrics = compare(array, np.asarray(wanted))
        rows.append(Row(name=name, metrics=metrics, ok=within(metrics, level, policy)))
    return tuple(rows)


def op_rows(
    index: int,
    op: Op,
    results: Sequence[np.ndarray],
    golden: Mapping[str, np.ndarray],
    level: Level,
    policy: Policy,
) -> list[Row]:
    """A row for each result of an op whose golden value is known."""
    rows = []
    for value, result in zip(op.outputs, results, strict=True):
        if value.name not in golden:
            continue
        wanted = golden[value.name]
        metrics = compare(np.broadcast_to(result, wanted.shape), wanted)
        ok = within(metrics, level, policy)
        source = str(op.source)
        rows.append(
            Row(name=value.name, metrics=metrics, ok=ok, op=index, call=op.name, source=source)
        )
    return rows


def check(
    function: Callable[..., Any],
    params: Any,
    inputs: Mapping[str, Any],
    *,
    state: Any = None,
    policies: Sequence[Policy] = POLICIES,
    levels: Sequence[Literal["P1", "P2"]] = LEVELS,
    arch: Arch = "wormhole_b0",
    name: str = "program",
) -> list[Report]:
    """Lower `function` under each policy and compare it with JAX at each level."""
    graph = trace(function, params, inputs, state)
    sample = make_sample(function, params, inputs, state)
    reports = []
    for policy in policies:
        lowered: Lowered = lower_graph_of(graph, name=name, policy=policy, arch=arch)
        golden = lowered.golden(sample.inputs, sample.before)
        reports += [check_program(lowered.program, sample, level, golden) for level in levels]
    return reports


def assert_parity(
    function: Callable[..., Any],
    params: Any,
    inputs: Mapping[str, Any],
    *,
    state: Any = None,
    policies: Sequence[Policy] = POLICIES,
    chips: Sequence[Arch] = (),
) -> None:
    """AssertionError unless the lowered `function` equals the JAX one; for tests in your own CI.

    `inputs`: name -> concrete array; `state`: see `lowering.lower`. `chips`: also have every op
    accepted by the mock device of these chips (needs ttnn). The message names the first op out of
    tolerance, its Flax module and source line.
    """
    reports = check(function, params, inputs, state=state, policies=policies)
    failures = [str(report) for report in reports if not report.ok]
    for chip in chips:
        failures += _rejections(trace(function, params, inputs, state), policies, chip)
    assert not failures, "the lowered program differs from the JAX function\n" + "\n".join(failures)


def check_folder(
    directory: str | Path,
    *,
    backend: Literal["reference", "ttnn"] = "reference",
    bisect: bool = False,
) -> list[Report]:
    """A saved program on its own sample; the reports also go to parity.json in the folder.

    "reference": P2, and P1 where the weights are stored unrounded (policy float32). "ttnn": P4 on
    the card or simulator that the environment names; a mock computes no numbers, so there use
    `lowering.backends.ttnn.check_mock`. Every op is compared with what JAX computed for it when
    the program was made; on a device, which reads each result back for that, only with `bisect`,
    and then ops that JAX has no counterpart of with the reference backend. ValueError where the
    device ends the run; with `bisect` it names the op, and saves it alone in the folder `refused`.
    """
    folder = load(directory)
    golden = folder.golden()
    if backend == "reference":
        program = folder.program.replace(arrays=folder.weights)
        levels = LEVELS if program.policy == "float32" else LEVELS[1:]
        reports = [check_program(program, folder.example(), level, golden) for level in levels]
    else:
        from lowering.device_run import check_on_device

        reports = [check_on_device(Path(directory), folder, bisect=bisect)]
    write_reports(directory, reports)
    return reports


def write_reports(directory: str | Path, reports: Sequence[Report]) -> None:
    """parity.json of a program folder: every compared output and op of each report.

    What it says of other levels and backends stays.
    """
    place = Path(directory) / PARITY
    before = json.loads(place.read_text())["reports"] if place.is_file() else []
    known = {(row["level"], row["backend"]): row for row in before}
    known |= {(report.level, report.backend): report.to_json() for report in reports}
    summary = {"ok": all(row["ok"] for row in known.values()), "reports": list(known.values())}
    place.write_text(json.dumps(summary, indent=1))


def _rejections(graph: Graph, policies: Sequence[Policy], chip: Arch) -> list[str]:
    """What the mock device of a chip does not accept."""
    from lowering.backends.ttnn import check_many

    programs = [
        lower_graph_of(graph, name=policy, policy=policy, arch=chip).program for policy in policies
    ]
    reports = check_many(programs, chip)
    return [f"P3 {r.program} on {chip}: {error}" for r in reports for error in r.errors]
