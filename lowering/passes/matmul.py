"""Program configs of the matmuls for which ttnn makes no choice, or none that is legal."""

import math

from lowering.ir import TILE, Op, Program, Value
from lowering.passes.memory import GRID

MAX_BLOCK_TILES = 64  # of the operands' blocks, in a core's circular buffers
MAX_SUBBLOCK_TILES = 4  # of float32 results in the accumulator


def configure_matmuls(program: Program) -> Program:
    """One weight on the left of a batch: spread the weight's rows over the cores. Products with
    some matrices of a stack: spread their columns.

    ttnn broadcasts the left operand's batch only with the former kind of program, and picks another
    one by itself for some sizes when operands lie in L1; for the latter it makes no choice.
    """
    values = program.values()
    ops = []
    for op in program.ops:
        choose = _stack if op.name == "sparse_matmul" else _left_broadcast
        config = choose(op, values, GRID[program.arch])
        ops.append(op.replace(attrs={**op.attrs, "program_config": config}) if config else op)
    return program.replace(ops=tuple(ops))


def _left_broadcast(op: Op, values: dict[str, Value], grid: tuple[int, int]) -> dict | None:
    if op.name != "matmul" or op.attrs.get("transpose_a") or op.attrs.get("transpose_b"):
        return None
    a, b = (values[name].shape for name in op.inputs)
    if len(a) < 3 or len(b) != len(a) or a[:-2] == b[:-2] or set(a[:-2]) != {1}:
        return None
    rows, inner, columns = (-(-size // TILE) for size in (a[-2], a[-1], b[-1]))
    if columns > MAX_BLOCK_TILES:
        return None
    depth = _largest_divisor(inner, max(1, MAX_BLOCK_TILES // columns))
    return {
        "in0_block_w": depth,
        "out_subblock_h": 1,
        "out_subblock_w": _largest_divisor(columns, MAX_SUBBLOCK_TILES),
        "per_core_M": -(-rows // math.prod(grid)),
        "per_core_N": columns,
        "fuse_batch": False,
        "mcast_in0": False,
    }


def _stack(op: Op, values: dict[str, Value], grid: tuple[int, int]) -> dict:
    a, b = (values[name].shape for name in op.inputs[:2])
    rows, inner, columns = (-(-size // TILE) for size in (a[-2], a[-1], b[-1]))
    share, cores = _rectangle(columns, grid)
    return {
        "in0_block_w": _largest_divisor(inner, max(1, MAX_BLOCK_TILES // (rows + share))),
        "out_subblock_h": 1,
        "out_subblock_w": _largest_divisor(share, MAX_SUBBLOCK_TILES),
        "per_core_M": rows,
        "per_core_N": share,
        "fuse_batch": False,
        "mcast_in0": True,
        "cores": cores,
    }


def _rectangle(columns: int, grid: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """The fewest columns a core, such that the cores with work fill a rectangle."""
    for share in range(1, columns + 1):
        count = -(-columns // share)
        for x in range(min(grid[0], count), 0, -1):
            if count % x == 0 and count // x <= grid[1]:
                return share, (x, count // x)
    raise AssertionError("one core is a rectangle")


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)
