"""Lowering rules: a jaxpr primitive or a region -> ops of the IR, one file a family.

A rule is a function `(ctx, *operands, **params)` that returns one operand or a list of them, under
`@lowers("primitive")`. Operands are Values (on the device) or Known (numbers at hand). A region's
rule gets the region's own arguments and static attributes, and may return DECLINED: then the
region's body is lowered primitive by primitive.
"""

from lowering.rules import (
    attention,
    elementwise,
    experts,
    index,
    layers,
    matmul,
    moe,
    reduce,
    regions,
    shape,
    sort,
    state,
    window,
)
from lowering.rules.context import DECLINED, RULES, Context, Operand, lower_graph, lowers

__all__ = [
    "DECLINED",
    "RULES",
    "Context",
    "Operand",
    "attention",
    "elementwise",
    "experts",
    "index",
    "layers",
    "lower_graph",
    "lowers",
    "matmul",
    "moe",
    "reduce",
    "regions",
    "shape",
    "sort",
    "state",
    "window",
]
