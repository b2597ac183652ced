"""What a program costs on each chip, as one JSON object: the report.json of a program's folder."""

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from lowering.backends.ttnn import MockReport, check_mock
from lowering.codegen import call_text
from lowering.cost import Estimate, estimate
from lowering.ir import Arch, Program
from lowering.ops import Fidelity, fidelity

MOCK_LIMITS = (
    "A mock device runs ttnn's own validation, program creation and allocators. It computes no"
    " numbers, takes no time and does not see the size of a kernel's code."
)


def has_ttnn() -> bool:
    """Whether ttnn is installed, so that a mock device can be asked."""
    return importlib.util.find_spec("ttnn") is not None


def make_report(
    program: Program, others: Mapping[Arch, Program], *, batch: int, check: bool
) -> dict[str, Any]:
    """Counts and costs of `program`, and of the same function lowered for each chip in `others`.

    `check`: ask ttnn's mock device; without it device programs and L1 are None. `batch`: how many
    sequences one run handles, for the estimated throughput.
    """
    programs = {program.arch: program, **others}
    reports = {arch: check_mock(p) if check else None for arch, p in programs.items()}
    estimates = {arch: _estimate(p, batch, reports[arch]) for arch, p in programs.items()}
    chips = {arch: _chip(p, reports[arch], estimates[arch], batch) for arch, p in programs.items()}
    own = chips[program.arch]
    return {
        "name": program.name,
        "policy": program.policy,
        "arch": program.arch,
        "batch": batch,
        **{key: value for key, value in own.items() if key not in ("throughput", "errors")},
        "compute": _compute(program),
        "op_counts": dict(Counter(op.name for op in program.ops).most_common()),
        "chips": chips,
        "ops": _ops(program, reports[program.arch], estimates[program.arch]),
        "notes": _notes(program),
        "mock_limits": MOCK_LIMITS,
    }


def _estimate(program: Program, batch: int, report: MockReport | None) -> Estimate:
    return estimate(program, batch, launches=report.launches() if report else None)


def _chip(
    program: Program, report: MockReport | None, cost: Estimate, batch: int
) -> dict[str, Any]:
    throughput = cost.to_json()
    del throughput["ops"]
    return {
        "ttnn_ops": len(program.ops),
        "layout_conversions": sum(op.name == "to_layout" for op in program.ops),
        "host_ops": 0,
        "device_programs": report.device_programs if report else None,
        "peak_l1_bytes_per_core": report.peak_l1_bytes_per_core if report else None,
        "dram_bytes": report.dram_bytes if report else cost.dram_bytes,
        "weight_bytes": sum(value.num_bytes() for value in program.weights),
        "weights_in_l1": all(value.memory == "l1" for value in program.weights),
        "flops": cost.flops,
        "moved_bytes": cost.moved_bytes,
        "accepted": report.ok if report else None,
        "errors": list(report.errors) if report else [],
        "throughput": throughput,
    }


def _ops(program: Program, report: MockReport | None, cost: Estimate) -> list[dict[str, Any]]:
    rows = []
    for index, (op, spent) in enumerate(zip(program.ops, cost.ops, strict=True)):
        value = op.outputs[0]
        rows.append(
            {
                "index": index,
                "name": op.name,
                "text": call_text(op, program),
                "output": ", ".join(v.name for v in op.outputs),
                "shape": list(value.shape),
                "dtype": value.dtype,
                "memory": value.memory,
                "programs": list(report.ops[index].programs) if report else None,
                "flops": spent.flops,
                "bytes": spent.read_bytes + spent.written_bytes,
                "time_us": spent.time_us,
                "bound": spent.bound,
                "region": op.source.region,
                "module": op.source.module,
                "line": op.source.line,
            }
        )
    return rows


def _compute(program: Program) -> dict[str, Any]:
    """The compute configs: how many ops have each math fidelity, and what holds for all of them."""
    values = program.values()
    chosen = Counter(fidelity(op, values) for op in program.ops)
    return {
        "math_fidelity": {name: chosen[name] for name in get_args(Fidelity) if chosen[name]},
        "accumulation": "float32",
        "approximate": False,
    }


def _notes(program: Program) -> list[str]:
    """What rules noted down, once each."""
    notes: Sequence[str] = [op.source.note for op in program.ops if op.source.note]
    return list(dict.fromkeys(notes))
