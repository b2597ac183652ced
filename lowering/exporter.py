"""Lower a function and leave a program folder: the one call for users."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from lowering.api import lower_graph_of
from lowering.ir import Arch, Policy
from lowering.parity import EXACT, LEAST_PCC, LEVELS, check_program, write_reports
from lowering.report import has_ttnn, make_report
from lowering.save import save
from lowering.trace import trace

REPORT = "report.json"
Check = Literal["auto", "mock", "none"]


def export(
    function: Callable[..., Any],
    params: Any,
    inputs: Mapping[str, Any],
    folder: str | Path,
    *,
    name: str = "model",
    policy: Policy = "bfloat16",
    arch: Arch = "wormhole_b0",
    check: Check = "auto",
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the ttnn program of `function(params, *inputs.values())` to `folder`, and check it.

    `inputs`: name -> example array, kept as the sample that `moejax parity` runs; for a
    jax.ShapeDtypeStruct, seeded normal numbers stand in. `check`: "mock" has ttnn's mock device
    accept every op on both chips, "auto" does so where ttnn is installed. Returns the report, also
    written as report.json; parity.json says how close the program is to the function, exactly (P1)
    and with the device's rounding (P2). LoweringError when something cannot be lowered.
    """
    if check == "mock" and not has_ttnn():
        raise ValueError("check='mock' needs ttnn; install moejax[device], or use check='none'")
    examples = {key: _concrete(value) for key, value in inputs.items()}
    graph = trace(function, params, examples)
    lowered = {
        chip: lower_graph_of(graph, name=name, policy=policy, arch=chip) for chip in get_args(Arch)
    }
    own = lowered.pop(arch)
    golden = own.golden(examples)
    with jax.default_matmul_precision("highest"):
        outputs = jax.tree.leaves(function(params, *examples.values()))
    save(
        own.program,
        folder,
        inputs=examples,
        outputs=outputs,
        golden=golden,
        model=model,
        tolerances={"exact": EXACT, "pcc": LEAST_PCC[policy]},
    )
    exact, rounded = (
        check_program(own.program, examples, outputs, level, golden) for level in LEVELS
    )
    write_reports(folder, [exact, rounded])
    report = make_report(
        own.program,
        {chip: other.program for chip, other in lowered.items()},
        batch=next((int(e.shape[0]) for e in examples.values() if e.ndim), 1),
        check=check == "mock" or (check == "auto" and has_ttnn()),
    )
    report["model"] = dict(model or {})
    report["parity"] = [
        {key: value for key, value in row.to_json().items() if key != "ops"}
        for row in (exact, rounded)
    ]
    text = json.dumps(report, indent=1)
    (Path(folder) / REPORT).write_text(text)
    return json.loads(text)


def _concrete(value: Any) -> np.ndarray:
    if not isinstance(value, jax.ShapeDtypeStruct):
        return np.asarray(value)
    normal = np.random.default_rng(0).standard_normal(value.shape)
    return (
        normal.astype(value.dtype)
        if np.dtype(value.dtype).kind == "f"
        else np.zeros(value.shape, value.dtype)
    )
