"""What a Program costs: FLOPs and bytes of each op, and a roofline estimate of its speed.

The FLOPs and bytes are counted. The times are an estimate from stated assumptions, never measured:
an op takes as long as its slowest part (arithmetic, moving tensors over the chip's network, DRAM),
plus a launch cost for each of its device programs. Standard library only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lowering.ir import TILE, Arch, Op, Program, Value
from lowering.ops import OPS, fidelity


def _assume(value: float, unit: str, why: str) -> Any:
    return field(default=value, metadata={"unit": unit, "why": why})


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What the estimate assumes of a board; `assumptions` lists it all with the reasons."""

    board: str
    cores: int
    clock_ghz: float
    dram_gb_per_s: float
    dram_efficiency: float = _assume(0.7, "", "reachable share of the DRAM's nominal rate")
    matmul_flops_per_cycle: float = _assume(
        4096, "per core and pass", "of one pass; HiFi3 takes three of them, HiFi4 four"
    )
    vector_lanes: float = _assume(32, "per core", "elementwise steps a cycle of the vector unit")
    network_bytes_per_cycle: float = _assume(
        32, "per core", "one read or write stream between a core and interleaved memory"
    )
    launch_us: float = _assume(
        5, "us", "gap before each program of a replayed trace; public reports say 1 to 22"
    )
    host_call_us: float = _assume(50, "us", "python and dispatch for each op without a trace")
    pcie_gb_per_s: float = _assume(8, "GB/s", "sustained host-to-device copies of small tensors")

    def assumptions(self) -> list[dict[str, Any]]:
        """Every number that the estimate rests on: name, value, unit, why."""
        board = {
            "cores": ("", "cores that programs may use, as the device reports its grid"),
            "clock_ghz": ("GHz", "the board's specified clock"),
            "dram_gb_per_s": ("GB/s", "the board's nominal memory rate"),
        }
        rows = []
        for item in fields(self)[1:]:
            unit, why = board.get(
                item.name, (item.metadata.get("unit", ""), item.metadata.get("why", ""))
            )
            rows.append(
                {"name": item.name, "value": getattr(self, item.name), "unit": unit, "why": why}
            )
        return rows


CHIPS: dict[Arch, Chip] = {
    "wormhole_b0": Chip(board="N150", cores=64, clock_ghz=1.0, dram_gb_per_s=288),
    "blackhole": Chip(board="P150", cores=110, clock_ghz=1.35, dram_gb_per_s=448),
}
# sequences a second and milliseconds that the project aims for
TARGETS: tuple[tuple[float, float], ...] = ((200, 30), (800, 15))

PASSES = {None: 1, "LoFi": 1, "HiFi2": 2, "HiFi3": 3, "HiFi4": 4}  # of the multipliers
MATMULS = ("matmul", "linear", "sparse_matmul")
ATTENTION = ("scaled_dot_product_attention", "scaled_dot_product_attention_decode")
# fmt: off
MOVES = (
    "concat", "slice", "pad", "permute", "reshape", "expand", "typecast", "to_layout",
    "embedding", "gather", "where", "fill_cache", "paged_update_cache", "copy", "to_memory_config",
)
# fmt: on
# vector steps for one element; 1 unless stated
STEPS = {
    **dict.fromkeys(("exp", "exp2", "log", "log1p", "expm1", "tanh", "sigmoid", "silu"), 16),
    **dict.fromkeys(("erf", "erfc", "gelu", "sin", "cos", "softplus", "pow"), 24),
    **dict.fromkeys(("sqrt", "rsqrt", "reciprocal", "divide", "rdiv"), 8),
    "softmax": 20,
    "rms_norm": 4,
    "layer_norm": 6,
    "var": 3,
    "topk": 32,
    "sort": 64,
}


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """Cost of one op. `flops` counts logical elements; `time_us` is the estimate with a trace."""

    index: int
    name: str
    flops: int
    read_bytes: int
    written_bytes: int
    dram_bytes: int
    programs: int
    time_us: float
    bound: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Cost of a program on a board, beside the target. An estimate, not a measurement."""

    board: str
    batch: int
    flops: int
    moved_bytes: int
    dram_bytes: int
    programs: int
    device_us: float
    device_us_without_trace: float
    transfer_us: float
    sequences_per_s: float
    sequences_per_s_without_trace: float
    latency_ms: float
    targets: tuple[tuple[float, float], ...]
    ops: tuple[OpCost, ...]
    assumptions: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return {"estimate": True, **asdict(self)}


def estimate(
    program: Program,
    batch: int,
    *,
    arch: Arch | None = None,
    launches: Mapping[int, Sequence[int]] | None = None,
) -> Estimate:
    """Estimated speed of a program that handles `batch` sequences a run.

    `launches`: op index -> cores of each device program that it launches, as a mock device reports
    (`MockReport.launches`); without it, one program on all cores is assumed for each op.
    """
    arch = arch or program.arch
    chip, values = CHIPS[arch], program.values()
    known = launches or {}
    costs = tuple(
        op_cost(index, op, values, chip, known.get(index)) for index, op in enumerate(program.ops)
    )
    outside = [*program.inputs, *(values[name] for name in program.outputs)]
    transfer = sum(value.num_bytes() for value in outside) / chip.pcie_gb_per_s / 1e3
    device = sum(cost.time_us for cost in costs)
    eager = sum(max(cost.time_us, chip.host_call_us) for cost in costs)
    return Estimate(
        board=chip.board,
        batch=batch,
        flops=sum(cost.flops for cost in costs),
        moved_bytes=sum(cost.read_bytes + cost.written_bytes for cost in costs),
        dram_bytes=sum(cost.dram_bytes for cost in costs),
        programs=sum(cost.programs for cost in costs),
        device_us=device,
        device_us_without_trace=eager,
        transfer_us=transfer,
        sequences_per_s=batch / max(device, transfer, 1e-9) * 1e6,
        sequences_per_s_without_trace=batch / max(eager + transfer, 1e-9) * 1e6,
        latency_ms=(device + transfer) / 1e3,
        targets=TARGETS,
        ops=costs,
        assumptions=tuple(chip.assumptions()),
    )


def op_cost(
    index: int,
    op: Op,
    values: Mapping[str, Value],
    chip: Chip,
    cores: Sequence[int] | None = None,
) -> OpCost:
    """Cost of one op; `cores` of each program that it launches, None where that is not known.

    Every program of an op is taken to move all of the op's tensors once, but for the one that
    clears the result of a sparse_matmul.
    """
    operands = [values[name] for name in op.inputs]
    if cores is None:
        cores = () if is_view(op, operands) else (chip.cores,)
    sizes = _bytes_read(op, operands)
    read = sum(sizes) if cores else 0
    whole = sum(value.num_bytes() for value in op.outputs)
    made = sum(sizes) if OPS[op.name].in_place is not None else whole
    written = made if cores else 0
    dram = made if op.outputs[0].memory == "dram" else 0
    dram += sum(n for v, n in zip(operands, sizes, strict=True) if v.memory == "dram")
    slowest = {"launch": len(cores) * chip.launch_us}
    if cores:
        moving = cores[-1:] if op.name == "sparse_matmul" else cores
        used = max(1, min(min(moving), chip.cores))
        cycles = chip.clock_ghz * 1e3
        passes = PASSES[fidelity(op, values)]
        slowest["arithmetic"] = _cycles(op, operands, chip, passes) / used / cycles
        slowest["network"] = sum(
            (read + written) / max(1, count) / chip.network_bytes_per_cycle / cycles
            for count in moving
        )
        rate = chip.dram_gb_per_s * chip.dram_efficiency
        slowest["dram"] = len(moving) * dram / rate / 1e3
    work = max((time for name, time in slowest.items() if name != "launch"), default=0.0)
    return OpCost(
        index=index,
        name=op.name,
        flops=flops(op, operands),
        read_bytes=read,
        written_bytes=written,
        dram_bytes=dram if cores else 0,
        programs=len(cores),
        time_us=work + slowest["launch"],
        bound=max(slowest, key=lambda name: slowest[name]) if cores else "free",
    )


def _bytes_read(op: Op, operands: Sequence[Value]) -> list[int]:
    """Of each operand; of a state that is written in place none. Of a stack of matrices those that
    indices name; a mask is data, so with one all are counted.
    """
    sizes = [value.num_bytes() for value in operands]
    if (state := OPS[op.name].in_place) is not None:
        sizes[state] = 0
    if op.name == "sparse_matmul" and len(operands) == 4:
        stack, names = operands[1].shape[1], operands[3].shape[-1]
        sizes[1] = sizes[1] * names // stack
    return sizes


def flops(op: Op, operands: Sequence[Value]) -> int:
    """Arithmetic of an op on logical shapes: 2 for a multiply-add, 1 an element for the rest."""
    if op.name in MATMULS:
        total = 2 * math.prod(op.outputs[0].shape) * _inner(op, operands)
        return total + (math.prod(op.outputs[0].shape) if len(operands) > 2 else 0)
    if op.name in ATTENTION:
        return 4 * math.prod(op.outputs[0].shape) * operands[1].shape[2]
    if op.name in MOVES:
        return 0
    largest = max((math.prod(v.shape) for v in (*operands, op.outputs[0])), default=0)
    return largest * (2 if op.name == "addcmul" else 1)


def is_view(op: Op, operands: Sequence[Value]) -> bool:
    """Whether a reshape leaves every element where it is: the 32x32 tiles stay whole."""
    if op.name != "reshape" or operands[0].layout != "tile":
        return False
    before, after = ((1, 1, *value.shape)[-2:] for value in (operands[0], op.output))
    aligned = before[0] % TILE == 0 and after[0] % TILE == 0
    return before[1] == after[1] and (before[0] == after[0] or aligned)


def _inner(op: Op, operands: Sequence[Value]) -> int:
    shape = operands[0].shape
    return shape[-2] if op.attrs.get("transpose_a") else shape[-1]


def _cycles(op: Op, operands: Sequence[Value], chip: Chip, passes: int) -> float:
    """Core cycles of the arithmetic, on padded tiles, in so many passes of the multipliers."""
    out = math.prod(op.outputs[0].padded_shape())
    if op.name in MATMULS:
        inner = -(-_inner(op, operands) // TILE) * TILE
        return passes * 2 * out * inner / chip.matmul_flops_per_cycle
    if op.name in ATTENTION:
        keys = operands[1].padded_shape()[2]
        scores = out // op.outputs[0].padded_shape()[3] * keys
        return (
            passes * 4 * out * keys / chip.matmul_flops_per_cycle
            + scores * STEPS["softmax"] / chip.vector_lanes
        )
    if op.name in MOVES:
        return 0.0
    largest = max((math.prod(v.padded_shape()) for v in operands), default=0)
    return max(out, largest) * STEPS.get(op.name, 1) / chip.vector_lanes
