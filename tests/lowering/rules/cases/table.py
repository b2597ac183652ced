"""All cases of all families."""

from tests.lowering.rules.cases import (
    control,
    elementwise,
    functions,
    index,
    matmul,
    reduce,
    regions,
    shape,
    sort,
    window,
)

FAMILIES = (
    control,
    elementwise,
    functions,
    index,
    matmul,
    reduce,
    regions,
    shape,
    sort,
    window,
)
CASES = [case for family in FAMILIES for case in family.CASES]
