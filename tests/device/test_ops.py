"""Every op that a program may hold, alone: its numbers on a card or the simulator."""

import numpy as np
import pytest

from lowering import parity
from lowering.backends import numerics, reference
from lowering.ir import FLOATS, Op, Program, Value
from lowering.runtime.devices import device_kind
from tests.device.runs import Call, Run
from tests.lowering.backends.op_cases import op_programs
from tests.lowering.rules.cases.base import booleans, grid, integers, normal, positive

pytestmark = [pytest.mark.device, pytest.mark.slow, pytest.mark.timeout(0)]

PROGRAMS = op_programs("wormhole_b0")
# ops whose results jump: on quarters, which every format holds, ties included
STEPS = {"eq", "ne", "lt", "le", "gt", "ge", "sign", "floor", "ceil", "round", "argmax", "topk"}
STEPS |= {"sort", "max", "min", "maximum", "minimum", "where", "clamp", "relu", "isfinite", "isnan"}
STEPS |= {"logical_not", "logical_and", "logical_or", "typecast"}
# kernels that no compiler for the simulator could build; they are ttnn's own, and run on a card
NO_KERNEL = {
    "remainder(float32[2,40,50], scalar=2.0)",
    "remainder(bfloat16[2,40,50], scalar=2.0)",
    "fmod(float32[2,40,50], scalar=2.0)",
    "fmod(bfloat16[2,40,50], scalar=2.0)",
    "gelu(float32[2,40,50], fast_and_approximate_mode=False)",
    "pow(bfloat16[2,40,50], bfloat16[2,1,50])",
    "remainder(int32[2,40,50], scalar=3)",
}
POSITIVE = {"log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "rdiv", "pow"}
DIVISIONS = {"divide", "floor_div", "fmod", "remainder"}


def numbers(op: Op, index: int, value: Value) -> np.ndarray:
    """Numbers for an op's operand that the op has a result for."""
    shape, name = value.shape, op.name
    match name, index:
        case (("scaled_dot_product_attention" | "scaled_dot_product_attention_decode"), 3):
            kept = booleans(*shape) | (np.arange(shape[-1]) == 0)
            return np.where(kept, 0, -1e9).astype(np.float32)
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


def make_run(call: str) -> Run:
    """The op on numbers as its operands' dtypes hold them; float32 arithmetic is expected."""
    program = PROGRAMS[call]
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


@pytest.mark.parametrize("call", PROGRAMS)
def test_numbers(call, outcome, record_property):
    """Within the tolerance of the dtype, integers equal."""
    if device_kind() == "simulator" and outcome.error and call in NO_KERNEL:
        record_property("device", {"section": "Ops", "name": call, "error": "kernel not built"})
        pytest.xfail("no compiler for the simulator builds this kernel")
    assert outcome.error is None, outcome.error
    found, program = outcome.value, PROGRAMS[call]
    floats = [v for v in program.values().values() if v.dtype in FLOATS]
    policy = min((v.dtype for v in floats), key=parity.POLICIES[::-1].index, default="float32")
    record_property("device", {"section": "Ops", "name": call, "policy": policy, **vars(found)})
    if all(value.dtype not in FLOATS for value in program.ops[-1].outputs):
        assert found.max_abs == 0
    assert parity.close(found.pcc, found.relative_l2, policy), found
