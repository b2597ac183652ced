"""P4 of the parity ladder: a saved program on a card or the simulator, beside what the reference
backend foretells, and op by op.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowering.backends import reference
from lowering.backends.ttnn import RefusedOpError, run_folder
from lowering.ir import Op, Program
from lowering.isolate import ChildError
from lowering.parity import EXACT, Report, Row, check_program, within
from lowering.runtime.folder import Folder, Sample
from lowering.runtime.metrics import Metrics
from lowering.save import save
from lowering.single_op import sample_of, single_op

REFUSED = "refused"
MESSAGE = 500  # characters of what a device says when it ends a run


def check_on_device(directory: Path, folder: Folder, *, bisect: bool) -> Report:
    """The program on the device that the environment names, in a child process."""
    program, sample = folder.program.replace(arrays=folder.weights), folder.example()
    emulated = check_program(program, sample, "P2", folder.golden())
    predicted = {row.name: row.metrics.relative_l2 for row in (*emulated.outputs, *emulated.ops)}
    numbers = _numbers(program, sample) if bisect else {}
    made = {value.name for op in program.ops for value in op.outputs}
    golden = {name: numbers[name] for name in made & numbers.keys()} | folder.golden()
    try:
        result = run_folder(directory, golden=golden if bisect else None)
    except RefusedOpError as error:
        raise ValueError(_refusal(directory, program, numbers, error)) from error
    except ChildError as error:
        text = textwrap.shorten(str(error), MESSAGE)
        raise ValueError(f"{text}\nwith --bisect the op is named and saved alone") from error
    if result["kind"] == "mock":
        raise ValueError(
            "the environment names a mock device, which computes no numbers; unset "
            "TT_METAL_MOCK_CLUSTER_DESC_PATH, or run `moejax lower ... --check mock`"
        )
    rows = [_device_row(row, row["output"], program, predicted) for row in result["outputs"]]
    ops = [_device_row(row, row["value"], program, predicted, row["op"]) for row in result["ops"]]
    return Report(
        level="P4",
        policy=program.policy,
        backend=f"ttnn on {result['kind']} {result['arch']}",
        outputs=tuple(rows),
        ops=tuple(ops),
    )


def _numbers(program: Program, sample: Sample) -> dict[str, np.ndarray]:
    """Every value of a run on the reference backend."""
    numbers = {**program.arrays, **sample.inputs, **sample.before}

    def on_op(op: Op, results: Sequence[np.ndarray]) -> None:
        numbers.update(zip((value.name for value in op.outputs), results, strict=True))

    reference.run(program, sample.inputs, "device", on_op, dict(sample.before))
    return numbers


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


def _device_row(
    row: Mapping[str, Any],
    name: str,
    program: Program,
    predicted: Mapping[str, float],
    op: int | None = None,
) -> Row:
    metrics = Metrics(**{key: row[key] for key in Metrics.__dataclass_fields__})
    ok = within(metrics, "P4", program.policy)
    compared = {"name": name, "metrics": metrics, "ok": ok, "predicted": predicted.get(name)}
    if op is None:
        return Row(**compared)
    if name not in predicted:  # compared with the emulation: of what is next to 0 both have noise
        compared["ok"] = ok or metrics.max_abs <= EXACT
    source = str(program.ops[op].source)
    return Row(**compared, op=op, call=program.ops[op].name, source=source)
