"""What one op gives: exactly, or rounded as ttnn was measured to round on the Wormhole simulator.

Every emulation says what it copies; docs/device_parity.md shows each beside what was measured.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowering.backends import numerics
from lowering.backends.definitions import (
    REFERENCE,
    attention_scores,
    softmax,
    weighted_values,
)
from lowering.ir import FLOATS, Op, Value


def typed(array: Any, value: Value) -> np.ndarray:
    """Truth values and floats as float32, integers as the value says."""
    return np.asarray(array, np.float32 if value.dtype in FLOATS else value.dtype)


def exact(op: Op, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The op's results in float32 arithmetic."""
    results = REFERENCE[op.name](*operands, **op.attrs)
    results = list(results) if isinstance(results, tuple) else [results]
    return [typed(r, value) for r, value in zip(results, op.outputs, strict=True)]


def emulated(op: Op, operands: Sequence[np.ndarray], values: Sequence[Value]) -> list[np.ndarray]:
    """The op's results as ttnn rounds them."""
    emulate = _EMULATIONS.get(op.name)
    results = emulate(op, operands, values) if emulate else exact(op, operands)
    return [
        numerics.round_to(r, value.dtype) if value.dtype in FLOATS else r
        for r, value in zip(results, op.outputs, strict=True)
    ]


def _product(op: Op, operands, values) -> list[np.ndarray]:
    """float32 operands are cut to TF32; the float32 accumulator keeps about 10 bits."""
    cut = [
        numerics.truncate_mantissa(x, 10) if value.dtype == "float32" else x
        for x, value in zip(operands, values, strict=True)
    ]
    return [numerics.truncate_mantissa(r, 10) for r in exact(op, cut)]


def _binary(op: Op, operands, values) -> list[np.ndarray]:
    """A scalar beside bfloat16 is rounded first; bfloat16 sums round ties away from zero."""
    if values[0].dtype not in ("bfloat16", "bfloat8_b"):
        return exact(op, operands)
    attrs = dict(op.attrs)
    if "scalar" in attrs:
        scalar = np.asarray(attrs["scalar"], np.float32)
        attrs["scalar"] = float(numerics.round_to(scalar, "bfloat16"))
    results = exact(op.replace(attrs=attrs), operands)
    away = op.name in ("add", "subtract", "rsub") and op.output.dtype == "bfloat16"
    return [numerics.round_half_away(r) for r in results] if away else results


def _mean(op: Op, operands, values) -> list[np.ndarray]:
    """In bfloat16 the factor 1 / count is cut as well."""
    if values[0].dtype == "float32":
        return exact(op, operands)
    count = np.float32(operands[0].size / np.prod(op.output.shape))
    factor = numerics.truncate_mantissa(np.asarray(1 / count), 7)
    return [r * count * factor for r in exact(op, operands)]


def _softmax(op: Op, operands, values) -> list[np.ndarray]:
    """In float32 it reads and writes TF32."""
    if values[0].dtype != "float32":
        return exact(op, operands)
    cut = [numerics.truncate_mantissa(x, 10) for x in operands]
    return [numerics.truncate_mantissa(r, 10) for r in exact(op, cut)]


def _norm(op: Op, operands, values) -> list[np.ndarray]:
    """In float32 every step of it is cut to TF32."""
    if values[0].dtype != "float32":
        return exact(op, operands)

    def cut(x: np.ndarray) -> np.ndarray:
        return numerics.truncate_mantissa(np.asarray(x, np.float32), 10)

    x, *affine = map(cut, operands)
    if op.name == "layer_norm":
        x = cut(x - x.mean(axis=-1, keepdims=True))
    power = np.square(x).mean(axis=-1, keepdims=True)
    y = cut(x * cut(1 / np.sqrt(power + np.float32(op.attrs["epsilon"]))))
    for combine, array in zip((np.multiply, np.add), affine, strict=False):
        y = cut(combine(y, array))
    return [y]


def _cut_at_the_end(op: Op, operands, values) -> list[np.ndarray]:
    """In bfloat16 the result is cut, not rounded."""
    results = exact(op, operands)
    if op.output.dtype != "bfloat16":
        return results
    return [numerics.truncate_mantissa(r, 7) for r in results]


def _attention(op: Op, operands, values) -> list[np.ndarray]:
    """The weights of the values are bfloat16, sums float32."""
    q, k, v, *mask = operands
    weights = softmax(attention_scores(q, k, *mask, **op.attrs))
    return [typed(weighted_values(numerics.round_to(weights, "bfloat16"), v), op.output)]


def _attention_decode(op: Op, operands, values) -> list[np.ndarray]:
    """As attention of one step; scores are bfloat16 too."""
    q, k, v, mask = operands
    moved = np.moveaxis(q, 0, 2), k, np.moveaxis(mask, 1, 2)
    scores = numerics.round_to(attention_scores(*moved, **op.attrs), "bfloat16")
    weights = numerics.round_to(softmax(scores), "bfloat16")
    return [typed(np.moveaxis(weighted_values(weights, v), 2, 0), op.output)]


_EMULATIONS = {
    "matmul": _product,
    "linear": _product,
    "sparse_matmul": _product,
    "add": _binary,
    "subtract": _binary,
    "rsub": _binary,
    "multiply": _binary,
    "divide": _binary,
    "mean": _mean,
    "scaled_dot_product_attention": _attention,
    "scaled_dot_product_attention_decode": _attention_decode,
    "softmax": _softmax,
    "rms_norm": _norm,
    "layer_norm": _norm,
    **dict.fromkeys(("erf", "erfc", "pow"), _cut_at_the_end),
}
