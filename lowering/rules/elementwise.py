"""Elementwise arithmetic, comparison, selection and conversion."""

import functools

import numpy as np

from lowering.builder import logical_dtype
from lowering.graph import Known
from lowering.ir import Value
from lowering.rules.context import Context, Operand, expand, is_bool, is_integer, lowers, uniform

UNARY = {
    "abs": "abs",
    "ceil": "ceil",
    "cos": "cos",
    "erf": "erf",
    "erfc": "erfc",
    "exp": "exp",
    "exp2": "exp2",
    "expm1": "expm1",
    "floor": "floor",
    "is_finite": "isfinite",
    "log": "log",
    "log1p": "log1p",
    "log2": "log2",
    "logistic": "sigmoid",
    "neg": "neg",
    "not": "logical_not",
    "rsqrt": "rsqrt",
    "sign": "sign",
    "sin": "sin",
    "sqrt": "sqrt",
    "square": "square",
    "tanh": "tanh",
}
BINARY = {
    "add": "add",
    "add_any": "add",
    "div": "divide",
    "eq": "eq",
    "ge": "ge",
    "gt": "gt",
    "le": "le",
    "lt": "lt",
    "max": "maximum",
    "min": "minimum",
    "mul": "multiply",
    "ne": "ne",
    "pow": "pow",
    "rem": "fmod",
    "sub": "subtract",
}
COMPARISONS = ("eq", "ge", "gt", "le", "lt", "ne")
# op -> the number on the right that changes nothing
NEUTRAL = {
    "add": 0,
    "subtract": 0,
    "multiply": 1,
    "divide": 1,
    "maximum": -np.inf,
    "minimum": np.inf,
}
# a scalar on the left: the op with its operands exchanged
MIRRORED = {
    "add": "add",
    "divide": "rdiv",
    "eq": "eq",
    "ge": "le",
    "gt": "lt",
    "le": "ge",
    "lt": "gt",
    "maximum": "maximum",
    "minimum": "minimum",
    "multiply": "multiply",
    "ne": "ne",
    "subtract": "rsub",
}
LOGICAL = {"and": "logical_and", "or": "logical_or", "xor": "ne"}
# reduce_precision: half precision is float32 here until the dtype policy decides
IDENTITY = (
    "copy",
    "optimization_barrier",
    "reduce_precision",
    "sharding_constraint",
    "stop_gradient",
)


def narrow(operand: Operand) -> Operand:
    """A known operand cut to one along the axes where it repeats: the device broadcasts it back."""
    if not isinstance(operand, Known):
        return operand
    array = operand.numpy()
    for axis, size in enumerate(array.shape):
        first = array.take([0], axis) if size > 1 else array
        if size > 1 and np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return Known(array, operand.name)


def binary(ctx: Context, op: str, a: Operand, b: Operand, **attrs) -> Operand:
    """`op` of two operands that broadcast; a known one that repeats one number is a scalar."""
    left, right = uniform(a), uniform(b)
    if op == "multiply" and a is b:
        return ctx.emit("square", a)
    if right is not None and isinstance(a, Value):
        result = _with_scalar(ctx, op, a, right, attrs)
    elif left is not None and isinstance(b, Value) and op in MIRRORED:
        result = _with_scalar(ctx, MIRRORED[op], b, left, attrs)
    else:
        result = ctx.emit(op, narrow(a), narrow(b), **attrs)
    return spread(ctx, result, np.broadcast_shapes(a.shape, b.shape))


def spread(ctx: Context, x: Operand, shape: tuple[int, ...]) -> Operand:
    """`x` broadcast to a shape of the same or a higher rank."""
    return expand(ctx, ctx.reshape(x, (1,) * (len(shape) - len(x.shape)) + tuple(x.shape)), shape)


def _with_scalar(ctx: Context, op: str, x: Value, scalar: float, attrs) -> Value:
    if NEUTRAL.get(op) == scalar:
        return x
    if op == "maximum" and scalar == 0 and x.dtype == "float32":
        return ctx.emit("relu", x)  # the name under which it is fused into what comes before
    return ctx.emit(op, x, scalar=scalar, **attrs)


@lowers(*UNARY)
def unary(ctx: Context, x, **params):
    if params.get("accuracy") is not None:
        raise ctx.fail("an accuracy other than the default is not available on the device")
    if ctx.node.primitive == "not" and not is_bool(ctx.node.inputs[0]):
        raise ctx.fail("bitwise operations on integers are not supported")
    if ctx.node.primitive == "sign" and x.dtype != "float32":
        above, below = (ctx.emit(op, x, scalar=0) for op in ("gt", "lt"))
        return ctx.emit("subtract", above, below)
    return ctx.emit(UNARY[ctx.node.primitive], x)


@lowers(*BINARY)
def binary_rule(ctx: Context, a, b, **_):
    """Truth values are 0.0 and 1.0, of whatever was compared."""
    name = ctx.node.primitive
    if name in ("div", "pow") and is_integer(ctx.node.outputs[0]):
        raise ctx.fail("integer division and powers are not exact on the device; use floats")
    integers = is_integer(ctx.node.inputs[0])
    attrs = {"dtype": "float32"} if name in COMPARISONS and integers else {}
    return binary(ctx, BINARY[name], a, b, **attrs)


@lowers(*LOGICAL)
def logical(ctx: Context, a, b):
    if not is_bool(ctx.node.inputs[0]):
        raise ctx.fail("bitwise operations on integers are not supported")
    return binary(ctx, LOGICAL[ctx.node.primitive], a, b)


@lowers("clamp")
def clamp(ctx: Context, low, x, high):
    bounds = uniform(low), uniform(high)
    if None not in bounds:
        return ctx.emit("clamp", x, min=bounds[0], max=bounds[1])
    return binary(ctx, "minimum", binary(ctx, "maximum", x, low), high)


@lowers("integer_pow")
def integer_pow(ctx: Context, x, *, y):
    """Repeated squaring; a negative power is the reciprocal of the positive one."""
    if y == 0:
        return ctx.constant(np.ones(x.shape, x.dtype))
    powers, rest = [x], abs(y) >> 1
    while rest:
        powers.append(ctx.emit("square", powers[-1]))
        rest >>= 1
    needed = [power for bit, power in enumerate(powers) if abs(y) >> bit & 1]
    power = functools.reduce(lambda a, b: ctx.emit("multiply", a, b), needed)
    return power if y > 0 else ctx.emit("reciprocal", power)


@lowers("one_minus_square")
def one_minus_square(ctx: Context, x, **_):
    return ctx.emit("rsub", ctx.emit("square", x), scalar=1.0)


@lowers("round")
def round_rule(ctx: Context, x, *, rounding_method):
    if int(rounding_method) != 1:
        raise ctx.fail("only rounding to nearest, ties to even, is supported (jnp.round)")
    return ctx.emit("round", x)


@lowers("select_n")
def select_n(ctx: Context, which, *cases):
    """`where`: cases[0] is the FALSE case. By number: one `where` for each further case."""
    shape = ctx.node.outputs[0].shape
    if (chosen := uniform(which)) is not None:
        return spread(ctx, cases[int(chosen)], shape)
    result, *rest = cases
    for number, case in enumerate(rest, 1):
        hit = which
        if not is_bool(ctx.node.inputs[0]):
            hit = binary(ctx, "eq", which, _number(number), dtype="float32")
        result = _where(ctx, hit, case, result)
    return spread(ctx, result, shape)


def _where(ctx: Context, which: Operand, true: Operand, false: Operand) -> Value:
    which = narrow(which)
    if is_integer(ctx.node.outputs[0]):
        # ttnn takes no integer scalars beside a float condition
        return ctx.emit("where", which, narrow(true), narrow(false))
    scalars = {"true_scalar": uniform(true), "false_scalar": uniform(false)}
    scalars = {key: float(number) for key, number in scalars.items() if number is not None}
    tensors = [narrow(case) for case in (true, false) if uniform(case) is None]
    return ctx.emit("where", which, *tensors, **scalars)


def _number(number: int) -> Known:
    return Known(np.asarray(number, np.int32))


@lowers("convert_element_type")
def convert_element_type(ctx: Context, x, *, new_dtype, **_):
    new_dtype = np.dtype(new_dtype)
    if new_dtype.kind == "b" and is_bool(ctx.node.inputs[0]):
        return x
    if new_dtype.kind == "b":
        return binary(ctx, "ne", x, Known(np.zeros((), x.dtype)), dtype="float32")
    return ctx.convert(x, logical_dtype(new_dtype))


@lowers(*IDENTITY)
def identity(ctx: Context, *xs, **_):
    return list(xs)
