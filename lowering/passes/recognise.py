"""Arrangements of ops for which ttnn has one op: silu, gelu, softplus, mean, softmax, norms.

They are found in the ops, not in a JAX version's expansion. On the device softmax and norms of
float32 work in TF32, gelu and softplus of float32 are less exact than their parts, so where float32
is asked for they stay as they are written.
"""

import math
from collections.abc import Callable

import numpy as np

from lowering.ir import Op, Program, Value
from lowering.passes.rewrite import Rewrite

NORMS = ("rms_norm", "layer_norm")


def recognise(program: Program) -> Program:
    """Replace each arrangement by its op; what nobody else reads of it is dropped."""
    walk = _Walk(program)
    for op in program.ops:
        if not any(rule(walk, op) for rule in _RULES.get(op.name, ())):
            walk.copy(op)
    return walk.finish()


class _Walk(Rewrite):
    """A walk that looks back at what has been built."""

    def operands(self, op: Op) -> list[Value]:
        return [self.new(name) for name in op.inputs]

    def made(self, value: Value | None, *names: str) -> Op | None:
        """The new op that made a value, if it has one of the names."""
        producer = self.builder.producers.get(value.name) if value is not None else None
        return producer if producer is not None and producer.name in names else None

    def source_of(self, op: Op, index: int = 0) -> Value:
        return self.builder.values[op.inputs[index]]

    def is_float32(self, op: Op) -> bool:
        return self.old.policy == "float32" or op.source.float32

    def mean_of(self, value: Value) -> Value | None:
        """What `value` is the mean of over its last axis, kept as an axis of one."""
        total = self.made(value, "divide", "mean")
        if total is not None and total.name == "divide":
            count, total = total.attrs.get("scalar"), self.made(self.source_of(total), "sum")
            if total is None or count != self.source_of(total).shape[-1]:
                return None
        if total is None or not total.attrs.get("keepdim"):
            return None
        x = self.source_of(total)
        return x if total.attrs["dim"] == len(x.shape) - 1 else None

    def squared(self, value: Value | None) -> Value | None:
        op = self.made(value, "square")
        return self.source_of(op) if op is not None else None

    def scaled(self, value: Value, factor: float) -> Value | None:
        """What `value` is the given multiple of."""
        op = self.made(value, "multiply")
        found = op.attrs.get("scalar") if op is not None else None
        if op is None or found is None or not math.isclose(found, factor, rel_tol=1e-6):
            return None
        return self.source_of(op)

    def row(self, value: Value, size: int) -> Value | None:
        """A weight of one number a column, as [1, size]."""
        if value.name not in self.builder.weights or value.shape[-1:] != (size,):
            return None
        array = self.builder.arrays[value.name]
        if array.size != size:
            return None
        return value if value.shape == (1, size) else self.weight_like(array.reshape(1, -1), value)

    def weight_like(self, array: np.ndarray, value: Value) -> Value:
        return self.builder.weight(array, value.name)


def _silu(walk: _Walk, op: Op) -> bool:
    """x * sigmoid(x)."""
    for x, gate in _both_ways(walk, op):
        sigmoid = walk.made(gate, "sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] == x.name:
            walk.replace(op, "silu", [x])
            return True
    return False


def _gelu(walk: _Walk, op: Op) -> bool:
    """(x / 2) * erfc(-x / sqrt(2)), as jax.nn.gelu has it."""
    if walk.is_float32(op):
        return False
    for half, other in _both_ways(walk, op):
        erfc, halved = walk.made(other, "erfc"), walk.scaled(half, 0.5)
        if erfc is None or halved is None:
            continue
        negated = walk.made(walk.scaled(walk.source_of(erfc), 0.5**0.5), "neg")
        if negated is not None and walk.source_of(negated) == halved:
            walk.replace(op, "gelu", [halved], fast_and_approximate_mode=False)
            return True
    return False


def _tanh_gate(walk: _Walk, op: Op) -> bool:
    """(tanh(u) + 1) / 2 is sigmoid(2u): of the gelu with tanh, two ops less."""
    shifted = walk.made(walk.operands(op)[0], "add") if op.attrs == {"scalar": 0.5} else None
    tanh = walk.made(walk.source_of(shifted), "tanh") if shifted is not None else None
    if shifted is None or tanh is None or shifted.attrs != {"scalar": 1.0}:
        return False
    inner = walk.made(walk.source_of(tanh), "multiply")
    if inner is None or set(inner.attrs) != {"scalar"}:
        return False
    doubled = 2 * inner.attrs["scalar"]
    twice = walk.emit(op, "multiply", [walk.source_of(inner)], scalar=doubled)
    walk.replace(op, "sigmoid", [twice])
    return True


def _softplus(walk: _Walk, op: Op) -> bool:
    """log(1 + exp(x)) as jnp.logaddexp(x, 0) has it: NaN, or max(x, 0) + log1p(exp(-|x|))."""
    if walk.is_float32(op) or len(op.inputs) != 3:
        return False
    is_nan, x, total = walk.operands(op)
    test, add = walk.made(is_nan, "ne"), walk.made(total, "add")
    if test is None or add is None or list(test.inputs) != [x.name] * 2 or len(add.inputs) != 2:
        return False
    relu, log = walk.made(walk.source_of(add), "relu"), walk.made(walk.source_of(add, 1), "log1p")
    size: Value | None = walk.source_of(log) if log is not None else None
    for name in ("exp", "neg", "abs"):
        step = walk.made(size, name)
        size = walk.source_of(step) if step is not None else None
    if relu is None or size != x or walk.source_of(relu) != x:
        return False
    walk.replace(op, "softplus", [x])
    return True


def _mean(walk: _Walk, op: Op) -> bool:
    """sum(x) / count, where float32 is asked for: ttnn's mean rounds 1 / count in bfloat16."""
    total = walk.made(walk.operands(op)[0], "sum")
    if total is None or not walk.is_float32(op) or total.source.float32 != op.source.float32:
        return False
    x = walk.source_of(total)
    if op.attrs.get("scalar") != np.prod(x.shape) / np.prod(total.output.shape):
        return False
    walk.replace(op, "mean", [x], **total.attrs)
    return True


def _softmax(walk: _Walk, op: Op) -> bool:
    """exp(x - max(x)) / sum(exp(x - max(x)))."""
    if walk.is_float32(op) or len(op.inputs) != 2:
        return False
    weights, total = walk.operands(op)
    sums, exp = walk.made(total, "sum"), walk.made(weights, "exp")
    if sums is None or exp is None or sums.inputs[0] != weights.name:
        return False
    shifted = walk.made(walk.source_of(exp), "subtract")
    peak = walk.made(walk.source_of(shifted, -1), "max") if shifted is not None else None
    if shifted is None or peak is None or peak.inputs[0] != shifted.inputs[0]:
        return False
    dim = sums.attrs["dim"]
    if not isinstance(dim, int) or peak.attrs["dim"] != dim or not sums.attrs.get("keepdim"):
        return False
    walk.replace(op, "softmax", [walk.source_of(shifted)], dim=dim, numeric_stable=True)
    return True


def _norm(walk: _Walk, op: Op) -> bool:
    """x * rsqrt(mean(x^2) + eps), or the same of x - mean(x); a row of weights may come first."""
    if walk.is_float32(op):
        return False
    for x, factor in _both_ways(walk, op):
        scaled = walk.made(factor, "multiply")
        options = [(factor, None)]
        if scaled is not None and len(scaled.inputs) == 2:
            a, b = walk.source_of(scaled), walk.source_of(scaled, 1)
            options += [(a, walk.row(b, x.shape[-1])), (b, walk.row(a, x.shape[-1]))]
        for inverse, weight in options:
            if inverse is not factor and weight is None:
                continue
            found = _statistics(walk, x, walk.made(inverse, "rsqrt"))
            if found is not None:
                name, source, epsilon = found
                inputs = [source] if weight is None else [source, weight]
                walk.replace(op, name, inputs, epsilon=epsilon)
                return True
    return False


def _norm_by_division(walk: _Walk, op: Op) -> bool:
    """x / sqrt(mean(x^2) + eps), or the same of x - mean(x)."""
    if walk.is_float32(op) or len(op.inputs) != 2:
        return False
    x, deviation = walk.operands(op)
    found = _statistics(walk, x, walk.made(deviation, "sqrt"))
    if found is None:
        return False
    name, source, epsilon = found
    walk.replace(op, name, [source], epsilon=epsilon)
    return True


def _statistics(walk: _Walk, x: Value, root: Op | None) -> tuple[str, Value, float] | None:
    """(norm, its operand, epsilon) if `root` is of the variance of x, or of what x centres."""
    shifted = walk.made(walk.source_of(root), "add") if root is not None else None
    if shifted is None or "scalar" not in shifted.attrs:
        return None
    epsilon, variance = shifted.attrs["scalar"], walk.source_of(shifted)
    squares = walk.mean_of(variance)
    if squares is not None and walk.squared(squares) == x:
        centred = _centred(walk, x)
        return ("layer_norm", centred, epsilon) if centred else ("rms_norm", x, epsilon)
    centred = _centred(walk, x)
    if centred is not None and _is_variance(walk, variance, centred):
        return "layer_norm", centred, epsilon
    return None


def _centred(walk: _Walk, x: Value) -> Value | None:
    """y if x is y - mean(y)."""
    op = walk.made(x, "subtract")
    if op is None or len(op.inputs) != 2:
        return None
    y = walk.source_of(op)
    return y if walk.mean_of(walk.source_of(op, 1)) == y else None


def _is_variance(walk: _Walk, value: Value, x: Value) -> bool:
    """Whether a value is mean(x^2) - mean(x)^2, perhaps with a floor of 0."""
    floor = walk.made(value, "relu")
    op = walk.made(walk.source_of(floor) if floor is not None else value, "subtract")
    if op is None or len(op.inputs) != 2:
        return False
    squares = walk.mean_of(walk.source_of(op))
    mean = walk.squared(walk.source_of(op, 1))
    return walk.squared(squares) == x and mean is not None and walk.mean_of(mean) == x


def _norm_weight(walk: _Walk, op: Op) -> bool:
    """norm(x) * weight."""
    for x, other in _both_ways(walk, op):
        norm, weight = walk.made(x, *NORMS), walk.row(other, x.shape[-1] if x.shape else 0)
        if norm is not None and weight is not None and len(norm.inputs) == 1:
            walk.replace(op, norm.name, [walk.source_of(norm), weight], **norm.attrs)
            return True
    return False


def _norm_bias(walk: _Walk, op: Op) -> bool:
    """layer_norm(x) + bias."""
    for x, other in _both_ways(walk, op):
        norm, bias = walk.made(x, "layer_norm"), walk.row(other, x.shape[-1] if x.shape else 0)
        if norm is None or bias is None or len(norm.inputs) > 2:
            continue
        inputs = [walk.builder.values[name] for name in norm.inputs]
        if len(inputs) == 1:
            inputs.append(walk.weight_like(np.ones(bias.shape, np.float32), bias))
        walk.replace(op, "layer_norm", [*inputs, bias], **norm.attrs)
        return True
    return False


def _both_ways(walk: _Walk, op: Op) -> list[tuple[Value, Value]]:
    operands = walk.operands(op)
    if len(operands) != 2 or op.attrs:
        return []
    return [(operands[0], operands[1]), (operands[1], operands[0])]


_RULES: dict[str, tuple[Callable[[_Walk, Op], bool], ...]] = {
    "add": (_norm_bias,),
    "divide": (_softmax, _norm_by_division, _mean),
    "multiply": (_silu, _gelu, _tanh_gate, _norm, _norm_weight),
    "where": (_softplus,),
}
