"""Two programs that share weights and state as one folder: a first call, and the calls after it.

    HEAD                what the host must know of both
    first, second       program folders, each complete in itself

The names of head and programs are those of the runtime that reads them.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from lowering.api import Lowered, lower_graph_of
from lowering.exporter import REPORT, Check, require_ttnn, write_export
from lowering.ir import Arch, Policy, Program
from lowering.runtime.folder import WEIGHTS, Sample
from lowering.save import replacing_folder, require_own
from lowering.trace import trace

Functions = Mapping[str, Callable[..., Any]]


def export_pair(
    functions: Functions,
    params: Any,
    state: Any,
    samples: Mapping[str, Sample],
    head: tuple[str, Mapping[str, Any]],
    folder: str | Path,
    *,
    name: str,
    policy: Policy = "bfloat16",
    arch: Arch = "wormhole_b0",
    check: Check = "auto",
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write both programs, with their samples, and the head (file name, JSON values) to `folder`.

    Returns the reports of both by name; options as those of `lowering.export`. ValueError for a
    folder that holds files but no such head.
    """
    require_ttnn(check)
    folder, (head_name, content) = Path(folder), head
    require_own(folder, head_name)
    lowered = lower_calls(functions, params, state, samples, name=name, policy=policy)
    with replacing_folder(folder) as scratch:
        programs = [lowered[part][arch].program for part in functions]
        options = {"check": check, "model": model, "together": programs}
        reports = {
            part: write_export(lowered[part], arch, samples[part], scratch / part, **options)
            for part in functions
        }
        _store_once(*(scratch / part / WEIGHTS for part in functions))
        (scratch / head_name).write_text(json.dumps(content, indent=1))
        (scratch / REPORT).write_text(json.dumps(reports, indent=1))
    return reports


def _store_once(first: Path, second: Path) -> None:
    """Two equal files become one with two names, where the file system can."""
    spare = second.with_suffix(".link")
    with contextlib.suppress(OSError):
        os.link(first, spare)
        spare.replace(second)


def lower_calls(
    functions: Functions,
    params: Any,
    state: Any,
    samples: Mapping[str, Sample],
    *,
    name: str,
    policy: Policy,
) -> dict[str, dict[Arch, Lowered]]:
    """Both programs for both chips; the same weights have the same names in both."""
    graphs = {
        part: trace(function, params, samples[part].inputs, state)
        for part, function in functions.items()
    }
    lowered: dict[str, dict[Arch, Lowered]] = {part: {} for part in functions}
    for chip in get_args(Arch):
        first, second = (
            lower_graph_of(graph, name=f"{name}.{part}", policy=policy, arch=chip)
            for part, graph in graphs.items()
        )
        program = name_weights_alike(first.program, second.program)
        again = Lowered(program, second.graph, second.origins)
        for part, one in zip(functions, (first, again), strict=True):
            lowered[part][chip] = one
    return lowered


def name_weights_alike(first: Program, second: Program) -> Program:
    """`second`, each weight called as the equal one of `first`, and no other weight called so."""
    names: dict[str, str] = {}
    taken = {value.name for value in (*first.weights, *second.values().values())}
    for value in second.weights:
        array = second.arrays[value.name]
        same = (
            other.name
            for other in sorted(first.weights, key=lambda other: other.name != value.name)
            if (other.dtype, other.layout, other.shape) == (value.dtype, value.layout, value.shape)
            and np.array_equal(first.arrays[other.name], array)
        )
        found = next((name for name in same if name not in names.values()), None)
        if found is None and value.name in first.arrays:
            fresh = (f"{value.name}.{number}" for number in range(2, len(taken) + 3))
            found = next(candidate for candidate in fresh if candidate not in taken)
        names[value.name] = found or value.name
        taken.add(names[value.name])
    return _renamed(second, names)


def _renamed(program: Program, names: Mapping[str, str]) -> Program:
    def new(name: str) -> str:
        return names.get(name, name)

    ops = tuple(op.replace(inputs=tuple(map(new, op.inputs))) for op in program.ops)
    weights = tuple(
        type(value)(new(value.name), value.shape, value.dtype, value.layout, value.memory)
        for value in program.weights
    )
    arrays = {new(name): array for name, array in program.arrays.items()}
    outputs = tuple(map(new, program.outputs))
    return program.replace(ops=ops, weights=weights, arrays=arrays, outputs=outputs)
