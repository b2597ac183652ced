"""Router columns padded to what the top-k kernel works on, where that costs nothing."""

import numpy as np

from lowering.ir import Op, Program
from lowering.passes.rewrite import Rewrite

WIDTH = 64  # the narrowest row that ttnn.topk takes without padding it by two programs of its own
NEVER = -3e38  # finite, below every logit


def widen_topk(program: Program) -> Program:
    """topk(matmul(x, W)) over fewer than 64 columns: give W columns that are never chosen.

    The wide matmul is for the top-k alone; other readers keep theirs.
    """
    walk = Rewrite(program)
    for op in program.ops:
        if op.name != "topk" or not _widen(walk, op):
            walk.copy(op)
    return walk.finish()


def _widen(walk: Rewrite, op: Op) -> bool:
    product = walk.producers.get(op.inputs[0])
    if product is None or product.name not in ("matmul", "linear"):
        return False
    if product.attrs.get("activation") or product.attrs.get("transpose_b"):
        return False
    weight = product.inputs[1]
    columns = op.outputs[0].shape[:-1] and walk.new(op.inputs[0]).shape[-1]
    if weight not in walk.old.arrays or walk.old.arrays[weight].ndim != 2 or columns >= WIDTH:
        return False
    if op.attrs["dim"] % len(walk.new(op.inputs[0]).shape) != len(op.outputs[0].shape) - 1:
        return False
    if len(product.inputs) > 2 and product.inputs[2] not in walk.old.arrays:
        return False
    if not walk.used_once(op.inputs[0]):
        return False
    spare = WIDTH - columns
    kernel = np.pad(walk.old.arrays[weight], ((0, 0), (0, spare)))
    row = np.zeros((1, columns), np.float32)
    if len(product.inputs) > 2:
        row = walk.old.arrays[product.inputs[2]].reshape(1, columns)
    bias = np.pad(row, ((0, 0), (0, spare)), constant_values=NEVER)
    inputs = [
        walk.new(product.inputs[0]),
        walk.builder.weight(kernel, weight),
        walk.builder.weight(bias, f"{weight.rpartition('.')[0] or weight}.columns"),
    ]
    attrs = {**product.attrs, "core_grid": "full"}
    wide = walk.emit(op.replace(source=product.source), "linear", inputs, **attrs)
    walk.replace(op, "topk", [wide], **op.attrs)
    return True
