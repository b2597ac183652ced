"""Which tensors live in L1, next to the cores."""

import math
from collections.abc import Mapping

from lowering.cost import is_view
from lowering.ir import Arch, Op, Program, Value
from lowering.ops import OPS

# Bytes of L1 a core that interleaved tensors may take together; the rest is left for the circular
# buffers of the running program. Free L1 of a core: 1,393,312 (Wormhole), 1,461,120 (Blackhole).
BUDGET = {"wormhole_b0": 700_000, "blackhole": 750_000}
GRID = {"wormhole_b0": (8, 8), "blackhole": (11, 10)}  # cores for programs, columns by rows


def place_in_l1(program: Program) -> Program:
    """Everything in L1 when weights and the live values fit together, else everything in DRAM.

    Results stay in DRAM, where the host reads them, and so do state and what an op only takes from
    there.
    """
    if peak_bytes_per_core(program) > BUDGET[program.arch]:
        return program
    values, results = program.values(), _with_views(program)
    in_dram = _needed_in_dram(program, values) | _state_and_views(program, values)

    def place(value: Value) -> Value:
        if value.name in in_dram or value.memory == "rows":
            return value
        return Value(value.name, value.shape, value.dtype, value.layout, "l1")

    def place_results(op: Op) -> Op:
        # one memory config holds for all results of an op
        read = any(value.name in results for value in op.outputs)
        if read and not _writes_in_place(op, values):
            return op
        return op.replace(outputs=tuple(map(place, op.outputs)))

    return program.replace(
        inputs=tuple(map(place, program.inputs)),
        weights=tuple(map(place, program.weights)),
        ops=tuple(map(place_results, program.ops)),
    )


def _with_views(program: Program) -> set[str]:
    """The results, and what they are free reshapes of: a view lies where its operand lies."""
    names, values = set(program.outputs), program.values()
    for op in reversed(program.ops):
        if op.outputs[0].name in names and is_view(op, [values[name] for name in op.inputs]):
            names |= set(op.inputs)
    return names


def _needed_in_dram(program: Program, values: Mapping[str, Value]) -> set[str]:
    """Operands that an op takes from DRAM alone, and what they are written in the place of."""
    needed: set[str] = set()
    for op in reversed(program.ops):
        needed |= {op.inputs[i] for i in OPS[op.name].in_dram if i < len(op.inputs)}
        if any(value.name in needed for value in op.outputs):
            # one memory config holds for all results of an op
            needed |= {value.name for value in op.outputs}
            needed |= {op.inputs[0]} if _writes_in_place(op, values) else set()
    return needed


def _state_and_views(program: Program, values: Mapping[str, Value]) -> set[str]:
    """State, its newer versions, and what lies where they lie."""
    found = {value.name for value in program.state}
    for op in program.ops:
        operands = [values[name] for name in op.inputs]
        view = is_view(op, operands) or _writes_in_place(op, values)
        if OPS[op.name].in_place is not None or (view and op.inputs[0] in found):
            found.add(op.output.name)
    return found


def _writes_in_place(op: Op, values: Mapping[str, Value]) -> bool:
    """Whether ttnn only fills the padding of the operand's own tiles, wherever it is told to."""
    return op.name == "pad" and op.output.padded_shape() == values[op.inputs[0]].padded_shape()


def peak_bytes_per_core(program: Program) -> int:
    """The most bytes that are live at once, spread evenly over the cores page by page."""
    values = program.values()
    sizes = {name: bytes_per_core(value, program.arch) for name, value in values.items()}
    sizes |= dict.fromkeys(_state_and_views(program, values), 0)
    resident = sum(sizes[value.name] for value in (*program.inputs, *program.weights))
    uses, dying = program.uses(), [0] * (len(program.ops) + 1)  # bytes that each op reads last
    for value in (value for op in program.ops for value in op.outputs):
        if value.name in uses:
            dying[uses[value.name][-1]] += sizes[value.name]
    live, peak = 0, 0
    for index, op in enumerate(program.ops):
        live += sum(sizes[value.name] for value in op.outputs)
        peak = max(peak, live)
        live -= dying[index]
    return resident + peak


def bytes_per_core(value: Value, arch: Arch) -> int:
    """Bytes of an interleaved tensor in the fullest bank."""
    pages = max(1, -(-value.num_bytes() // _page_bytes(value)))
    return -(-pages // math.prod(GRID[arch])) * _page_bytes(value)


def _page_bytes(value: Value) -> int:
    if value.layout == "tile":
        return Value("page", (32, 32), value.dtype).num_bytes()
    last = value.shape[-1] if value.shape else 1
    return max(1, Value("page", (1, last), value.dtype, "row_major").num_bytes())
