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
    if product is None or not _is_plain_router(walk, op, product):
        return False
    x, name, *bias = product.inputs
    kernel: np.ndarray = walk.old.arrays[name]
    spare = WIDTH - kernel.shape[1]
    row = np.zeros((1, WIDTH - spare), np.float32)
    if bias:
        row = walk.old.arrays[bias[0]].reshape(1, -1)
    columns = np.pad(row, ((0, 0), (0, spare)), constant_values=NEVER)
    inputs = [
        walk.new(x),
        walk.builder.weight(np.pad(kernel, ((0, 0), (0, spare))), name),
        walk.builder.weight(columns, f"{name}.columns"),
    ]
    attrs = {**product.attrs, "core_grid": "full"}
    wide = walk.emit(op.replace(source=product.source), "linear", inputs, **attrs)
    walk.replace(op, "topk", [wide], **op.attrs)
    return True


def _is_plain_router(walk: Rewrite, op: Op, product: Op) -> bool:
    """x @ W + b with resident weights, fewer columns than the kernel's width, for this op alone."""
    if product.name not in ("matmul", "linear") or not walk.used_once(op.inputs[0]):
        return False
    if product.attrs.get("activation") or product.attrs.get("transpose_b"):
        return False
    if not set(product.inputs[1:]) <= walk.old.arrays.keys():
        return False
    kernel: np.ndarray = walk.old.arrays[product.inputs[1]]
    rank = len(product.output.shape)
    last = op.attrs["dim"] % rank == rank - 1
    return last and kernel.ndim == 2 and kernel.shape[1] < WIDTH
