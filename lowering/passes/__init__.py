"""Program -> Program, one file a pass; PASSES is the order they run in."""

from collections.abc import Callable

from lowering.ir import Program
from lowering.passes.broadcast import keep_broadcasts_lazy
from lowering.passes.cse import share_common_subexpressions
from lowering.passes.dtypes import assign_dtypes
from lowering.passes.fuse import fuse_activations, fuse_linear, fuse_multiply_add
from lowering.passes.inputs import adapt_inputs
from lowering.passes.layout import place_layouts
from lowering.passes.liveness import free_at_last_use
from lowering.passes.matmul import configure_matmuls
from lowering.passes.memory import place_in_l1
from lowering.passes.recognise import recognise
from lowering.passes.simplify import simplify
from lowering.passes.sink import sink_reshapes
from lowering.passes.topk import widen_topk
from lowering.passes.transpose import fold_transposes
from lowering.runtime.verify import verify

Pass = Callable[[Program], Program]

PASSES: tuple[tuple[str, Pass], ...] = (
    # shape-only ops meet and cancel; this also turns reduce + unit axis into a kept axis
    ("simplify", simplify),
    # an expand is dropped where the next op broadcasts by itself
    ("lazy broadcast", keep_broadcasts_lazy),
    # a reshape moves on until it meets the one that undoes it
    ("sink reshapes", sink_reshapes),
    ("simplify", simplify),
    # kept axes meet their readers directly, equal ops are one, and none is fused yet
    ("share", share_common_subexpressions),
    ("recognise", recognise),
    # needs permutes next to matmuls, so after the cancelling
    ("fold transposes", fold_transposes),
    ("fuse linear", fuse_linear),
    # knows the router's matmul by now; its bias joins the new columns
    ("widen top-k", widen_topk),
    ("fuse multiply-add", fuse_multiply_add),
    ("fuse activations", fuse_activations),
    # from here on values have device dtypes
    ("dtypes", assign_dtypes),
    # typecasts that a dtype pair brought in may repeat
    ("share", share_common_subexpressions),
    # the only place that converts between tile and row-major
    ("layout", place_layouts),
    # all conversions are there
    ("inputs", adapt_inputs),
    # sizes are final: dtype and layout decide the bytes
    ("memory", place_in_l1),
    # the number of cores is the chip's
    ("matmul programs", configure_matmuls),
    # last: it only adds the frees
    ("liveness", free_at_last_use),
)


def run_passes(program: Program, passes: tuple[tuple[str, Pass], ...] = PASSES) -> Program:
    """Every pass in order, each followed by the verifier; a program it rejects is a bug."""
    placed = False
    _check(program, "rules", layouts=placed)
    for name, run in passes:
        program = run(program)
        placed = placed or name == "layout"
        _check(program, name, layouts=placed)
    return program


def _check(program: Program, after: str, *, layouts: bool) -> None:
    try:
        verify(program, layouts=layouts)
    except ValueError as error:
        raise AssertionError(f"inconsistent program after {after!r}: {error}") from error
