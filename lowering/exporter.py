"""Lower a function and leave a program folder: the one call for users."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from lowering.api import Lowered, lower_graph_of
from lowering.ir import Arch, Policy, Program
from lowering.parity import EXACT, LEAST_PCC, LEVELS, check_program, write_reports
from lowering.report import has_ttnn, make_report
from lowering.runtime.folder import Sample
from lowering.sample import make_sample
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
    state: Any = None,
    name: str = "model",
    policy: Policy = "bfloat16",
    arch: Arch = "wormhole_b0",
    check: Check = "auto",
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the ttnn program of `function(params, *inputs.values())` to `folder`, and check it.

    `inputs`: name -> example array, kept as the sample that `moejax parity` runs; for a
    jax.ShapeDtypeStruct, seeded normal numbers stand in. `state`: see `lowering.lower`. `check`:
    "mock" has ttnn's mock device accept every op on both chips, "auto" does so where ttnn is
    installed. Returns the report, also written as report.json; parity.json says how close the
    program is to the function, exactly (P1) and with the device's rounding (P2). LoweringError when
    something cannot be lowered.
    """
    require_ttnn(check)
    sample = make_sample(function, params, inputs, state)
    graph = trace(function, params, sample.inputs, state)
    lowered = {
        chip: lower_graph_of(graph, name=name, policy=policy, arch=chip) for chip in get_args(Arch)
    }
    return write_export(lowered, arch, sample, folder, check=check, model=model)


def require_ttnn(check: Check) -> None:
    """ValueError where the mock device is asked for and there is no ttnn."""
    if check == "mock" and not has_ttnn():
        raise ValueError("check='mock' needs ttnn; install moejax[device], or use check='none'")


def write_export(
    lowered: Mapping[Arch, Lowered],
    arch: Arch,
    sample: Sample,
    folder: str | Path,
    *,
    check: Check,
    model: Mapping[str, Any] | None,
    together: Sequence[Program] = (),
) -> dict[str, Any]:
    """The folder of a lowered function, with parity.json and report.json; returns the report.

    `together`: programs whose weights the folder's file holds as well.
    """
    own = lowered[arch]
    golden = own.golden(sample.inputs, sample.before)
    tolerances = {"exact": EXACT, "pcc": LEAST_PCC[own.program.policy]}
    options = {"model": model, "tolerances": tolerances, "together": together}
    save(own.program, folder, sample, golden=golden, **options)
    exact, rounded = (check_program(own.program, sample, level, golden) for level in LEVELS)
    write_reports(folder, [exact, rounded])
    report = make_report(
        own.program,
        {chip: other.program for chip, other in lowered.items() if chip != arch},
        batch=next((int(e.shape[0]) for e in sample.inputs.values() if e.ndim), 1),
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
