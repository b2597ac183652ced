"""Every op that a program may hold, alone: its numbers on a card or the simulator."""

import numpy as np
import pytest

from lowering import parity
from lowering.backends import numerics, reference
from lowering.ir import FLOATS, Op, Policy, Program, Value
from tests.device.runs import Call, Run
from tests.lowering.backends.op_cases import op_programs
from tests.lowering.rules.cases.base import booleans, grid, integers, normal, positive

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(0)]

SECTION, PROGRAMS = "Ops", op_programs("wormhole_b0")
# ops whose results jump: on quarters, which every format holds, ties included
STEPS = {"eq", "ne", "lt", "le", "gt", "ge", "sign", "floor", "ceil", "round", "argmax", "topk"}
STEPS |= {"sort", "max", "min", "maximum", "minimum", "where", "clamp", "relu", "isfinite", "isnan"}
STEPS |= {"logical_not", "logical_and", "logical_or", "typecast"}
NO_KERNEL = dict.fromkeys(
    [
        "remainder(float32[2,40,50], scalar=2.0)",
        "remainder(bfloat16[2,40,50], scalar=2.0)",
        "fmod(float32[2,40,50], scalar=2.0)",
        "fmod(bfloat16[2,40,50], scalar=2.0)",
        "gelu(float32[2,40,50], fast_and_approximate_mode=False)",
        "pow(bfloat16[2,40,50], bfloat16[2,1,50])",
        "remainder(int32[2,40,50], scalar=3)",
    ],
    parity.POLICIES,
)
POSITIVE = {"log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "rdiv", "pow"}
DIVISIONS = {"divide", "floor_div", "fmod", "remainder"}


def numbers(op: Op, index: int, value: Value) -> np.ndarray:
    """Numbers for an op's operand that the op has a result for."""
    shape, name = value.shape, op.name
    match name, index:
        case (("scaled_dot_product_attention" | "scaled_dot_product_attention_decode"), 3):
            kept = booleans(*shape) | (np.arange(shape[-1]) == 0)
            return np.where(kept, normal(*shape), -1e9).astype(np.float32)
        case "sparse_matmul", 2:
            return np.array([1, 0, 1, 1, 0, 1], np.float32).reshape(shape)
        case "sparse_matmul", 3:
            return np.array([4, 0, 4], np.int32).reshape(shape)
        case "embedding", 0:
            return integers(*shape, low=0, high=100)
        case "gather", 1:
            return integers(*shape, low=0, high=40)
        case "paged_update_cache", 2:
            return np.array([37, 0], np.int32)
    if value.dtype not in FLOATS:
        return integers(*shape, seed=index) if index == 0 else integers(*shape, low=1, high=6)
    if name in STEPS:
        return grid(*shape, seed=index)
    above_zero = name in POSITIVE or (name in DIVISIONS and index)
    above_zero |= "rsqrt" in op.attrs.get("activations", ())
    draw = positive if above_zero else normal
    return numerics.round_to(draw(*shape, seed=index), value.dtype)


def make_run(name: str, policy: Policy) -> Run:
    """The op on numbers as its operands' dtypes hold them; float32 arithmetic is expected."""
    del policy  # the program has it
    program = PROGRAMS[name]
    op = program.ops[-1]
    inputs = {v.name: _numbers_of(program, v) for v in program.inputs}
    before = {v.name: _numbers_of(program, v) for v in program.state}
    after = dict(before)
    outputs = reference.run(program, inputs, "exact", state=after)
    return Run(
        programs={op.name: program},
        calls=[Call(part=op.name, inputs=inputs, expected=outputs)],
        before=before,
        after=after,
    )


def _numbers_of(program: Program, value: Value) -> np.ndarray:
    op = program.ops[-1]
    names = [*op.inputs]
    index = names.index(value.name) if value.name in names else 1  # moved to rows before it
    return numbers(op, index, value)


def narrowest(program: Program) -> Policy:
    """The policy whose tolerance a program's floats call for."""
    floats = {value.dtype for value in program.values().values()} & {*FLOATS}
    return min(floats, key=parity.POLICIES[::-1].index, default="float32")


@pytest.mark.parametrize(
    ("name", "policy"), [(name, narrowest(program)) for name, program in PROGRAMS.items()]
)
def test_numbers(name, policy, measured):
    """Within the tolerance of the dtype, integers equal."""
    if all(value.dtype not in FLOATS for value in PROGRAMS[name].ops[-1].outputs):
        assert measured.max_abs == 0
    assert parity.close(measured.pcc, measured.relative_l2, policy), measured
