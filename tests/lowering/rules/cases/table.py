"""All cases of all families."""

from tests.lowering.rules.cases import (
    control,
    elementwise,
    functions,
    index,
    matmul,
    moe,
    packed,
    reduce,
    regions,
    shape,
    sort,
    transformer,
    window,
)

FAMILIES = (
    control,
    elementwise,
    functions,
    index,
    matmul,
    moe,
    packed,
    reduce,
    regions,
    shape,
    sort,
    transformer,
    window,
)
CASES = [case for family in FAMILIES for case in family.CASES]

# primitives that tracing handles, without a rule
TRACED = {
    "cond",
    "custom_jvp_call",
    "custom_vjp_call",
    "iota",
    "jit",
    "remat2",
    "scan",
    "while",
}
