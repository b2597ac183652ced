"""What one op gives: exactly, or rounded as ttnn was measured to round on the Wormhole simulator.

Every emulation says what it copies; docs/device_parity.md shows each beside what was measured.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowering.backends import numerics
from lowering.backends.definitions import (
    ACTIVATIONS,
    REFERENCE,
    attention_scores,
    decode_scores,
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
    """Of float32 operands 10 and 9 mantissa bits take part, of a bias 10, and of the product 10
    where a bias comes to it. The accumulator's error is that of 9 bits, however long the sum.
    """
    a, b, *bias = operands
    if values[0].dtype == "float32":
        a = _tf32(a)
    if values[1].dtype == "float32":
        b = numerics.truncate_mantissa(b, 9)
    if op.name != "linear" or not bias or values[0].dtype != "float32":
        return [numerics.round_mantissa(r, 9) for r in exact(op, [a, b, *bias])]
    attrs = {key: value for key, value in op.attrs.items() if key != "activation"}
    (product,) = exact(op.replace(attrs=attrs), [a, b])
    y = _tf32(numerics.round_mantissa(product, 9)) + _tf32(bias[0])
    return [ACTIVATIONS[op.attrs["activation"]](y) if "activation" in op.attrs else y]


def _tf32(x: np.ndarray) -> np.ndarray:
    return numerics.truncate_mantissa(np.asarray(x, np.float32), 10)


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
    """In float32 every step of it is cut to TF32."""
    if values[0].dtype != "float32":
        return exact(op, operands)
    x, dim = _tf32(operands[0]), op.attrs["dim"]
    weights = _tf32(np.exp(_tf32(x - x.max(axis=dim, keepdims=True))))
    return [_tf32(weights * _tf32(1 / weights.sum(axis=dim, keepdims=True)))]


def _norm(op: Op, operands, values) -> list[np.ndarray]:
    """In float32 every step of it is cut to TF32."""
    if values[0].dtype != "float32":
        return exact(op, operands)
    x, *affine = map(_tf32, operands)
    if op.name == "layer_norm":
        x = _tf32(x - x.mean(axis=-1, keepdims=True))
    power = np.square(x).mean(axis=-1, keepdims=True)
    y = _tf32(x * _tf32(1 / np.sqrt(power + np.float32(op.attrs["epsilon"]))))
    for combine, array in zip((np.multiply, np.add), affine, strict=False):
        y = _tf32(combine(y, array))
    return [y]


def _cut_at_the_end(op: Op, operands, values) -> list[np.ndarray]:
    """In bfloat16 the result is cut, not rounded; of a power where the exponent is a number."""
    results = exact(op, operands)
    if op.output.dtype != "bfloat16" or len(operands) > 1:
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
    scores = numerics.round_to(decode_scores(q, k, mask, **op.attrs), "bfloat16")
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
