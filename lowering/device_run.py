"""P4 of the parity ladder: a saved program on a card or the simulator, beside what the reference
backend foretells, and op by op.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowering.backends.ttnn import RefusedOpError, run_folder
from lowering.ir import Op, Policy, Program
from lowering.isolate import ChildError
from lowering.parity import EXACT, Report, Row, check_program, within
from lowering.runtime.folder import Folder
from lowering.runtime.metrics import Metrics
from lowering.save import save
from lowering.single_op import sample_of, single_op

Fields = Mapping[str, Any]
REFUSED = "refused"
MESSAGE = 500  # characters of what a device says when it ends a run


def check_on_device(directory: Path, folder: Folder, *, bisect: bool) -> Report:
    """The program on the device that the environment names, in a child process."""
    program, sample, golden = folder.program, folder.example(), folder.golden()
    program = program.replace(arrays=folder.weights)
    made: dict[str, np.ndarray] = {}

    def keep(op: Op, results: Sequence[np.ndarray]) -> None:
        made.update(zip((value.name for value in op.outputs), results, strict=True))

    emulated = check_program(program, sample, "P2", golden, keep if bisect else None)
    predicted = {row.name: row.metrics.relative_l2 for row in (*emulated.outputs, *emulated.ops)}
    try:
        result = run_folder(directory, golden=made | golden if bisect else None)
    except RefusedOpError as error:
        numbers = {**program.arrays, **sample.inputs, **sample.before, **made}
        raise ValueError(_refusal(directory, program, numbers, error)) from error
    except ChildError as error:
        text = textwrap.shorten(str(error), MESSAGE)
        raise ValueError(f"{text}\nwith --bisect the op is named and saved alone") from error
    if result["kind"] == "mock":
        raise ValueError(
            "the environment names a mock device, which computes no numbers; unset "
            "TT_METAL_MOCK_CLUSTER_DESC_PATH, or run `moejax lower ... --check mock`"
        )
    return Report(
        level="P4",
        policy=program.policy,
        backend=f"ttnn on {result['kind']} {result['arch']}",
        outputs=tuple(_output_row(row, program.policy, predicted) for row in result["outputs"]),
        ops=tuple(_op_row(row, program.policy, predicted) for row in result["ops"]),
    )


def _refusal(directory: Path, program: Program, numbers, error: RefusedOpError) -> str:
    """What to say of an op that ends the run; the op itself is saved beside the program."""
    text = textwrap.shorten(str(error), MESSAGE)
    if error.index == len(program.ops):
        return text
    alone = single_op(program, error.index)
    place = save(alone, directory / REFUSED, sample_of(alone, numbers))
    op = program.ops[error.index]
    return (
        f"op {error.index} {op.name} ({op.source}) ends the run: {text}\n"
        f"the op alone: python -m lowering.runtime {place}"
    )


def _output_row(row: Fields, policy: Policy, predicted: Mapping[str, float]) -> Row:
    metrics, name = _metrics(row), row["output"]
    ok = within(metrics, "P4", policy)
    return Row(name=name, metrics=metrics, ok=ok, predicted=predicted.get(name))


def _op_row(row: Fields, policy: Policy, predicted: Mapping[str, float]) -> Row:
    metrics, name = _metrics(row), row["value"]
    ok = within(metrics, "P4", policy)
    if name not in predicted:  # compared with the emulation: of what is next to 0 both have noise
        ok |= metrics.max_abs <= EXACT
    place = {"op": row["op"], "call": row["name"], "source": row["source"]}
    return Row(name=name, metrics=metrics, ok=ok, predicted=predicted.get(name), **place)


def _metrics(row: Fields) -> Metrics:
    return Metrics(**{key: row[key] for key in Metrics.__dataclass_fields__})
