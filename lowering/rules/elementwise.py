"""Elementwise arithmetic, comparison, selection and conversion."""

import numpy as np

from lowering.builder import logical_dtype
from lowering.ir import Value
from lowering.ops import broadcast
from lowering.rules.context import Context, Operand, expand, lowers, uniform
from lowering.trace import Known

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
    "sub": "subtract",
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
IDENTITY = ("copy", "copy_p", "stop_gradient", "sharding_constraint", "optimization_barrier")


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


def binary(ctx: Context, op: str, a: Operand, b: Operand) -> Operand:
    """`op` of operands that broadcast; a known operand that repeats one number is a scalar."""
    shape = broadcast(tuple(a.shape), tuple(b.shape))
    if (scalar := uniform(b)) is not None and isinstance(a, Value):
        result = ctx.emit(op, a, scalar=scalar)
    elif (scalar := uniform(a)) is not None and isinstance(b, Value) and op in MIRRORED:
        result = ctx.emit(MIRRORED[op], b, scalar=scalar)
    else:
        result = ctx.emit(op, narrow(a), narrow(b))
    return expand(ctx, result, shape)


@lowers(*UNARY)
def unary(ctx: Context, x, **params):
    if params.get("accuracy") is not None:
        raise ctx.fail("an accuracy other than the default is not available on the device")
    if ctx.node.primitive == "not" and ctx.node.inputs[0].dtype.kind != "b":
        raise ctx.fail("bitwise operations on integers are not supported")
    return ctx.emit(UNARY[ctx.node.primitive], x)


@lowers(*BINARY)
def binary_rule(ctx: Context, a, b, **_):
    if ctx.node.primitive in ("div", "pow") and ctx.node.outputs[0].dtype.kind in "iu":
        raise ctx.fail("integer division and powers are not exact on the device; use floats")
    a, b = _common(ctx, a, b)
    return binary(ctx, BINARY[ctx.node.primitive], a, b)


def _common(ctx: Context, a: Operand, b: Operand) -> tuple[Operand, Operand]:
    """Both operands in one dtype: truth values may be held as floats or as integers."""
    kinds = {operand.dtype for operand in (a, b) if isinstance(operand, Value)}
    if len(kinds) == 2:
        return ctx.convert(a, "float32"), ctx.convert(b, "float32")
    return a, b


@lowers(*LOGICAL)
def logical(ctx: Context, a, b):
    if ctx.node.inputs[0].dtype.kind != "b":
        raise ctx.fail("bitwise operations on integers are not supported")
    a, b = _common(ctx, a, b)
    return ctx.emit(LOGICAL[ctx.node.primitive], narrow(a), narrow(b))


@lowers("rem")
def remainder(ctx: Context, a, b):
    """C remainder, the sign of the dividend: a - trunc(a / b) * b."""
    return (
        ctx.emit("fmod", narrow(a), narrow(b))
        if uniform(b) is None
        else ctx.emit("fmod", a, scalar=uniform(b))
    )


@lowers("clamp")
def clamp(ctx: Context, low, x, high):
    bounds = uniform(low), uniform(high)
    if None not in bounds:
        return ctx.emit("clamp", x, min=bounds[0], max=bounds[1])
    low, high = (_spread(bound, x) for bound in (low, high))
    return binary(ctx, "minimum", binary(ctx, "maximum", x, low), high)


def _spread(bound: Operand, x: Operand) -> Operand:
    """A scalar bound seen at the shape of x."""
    if isinstance(bound, Known) and bound.shape == ():
        return Known(np.broadcast_to(bound.numpy(), x.shape), bound.name)
    return bound


@lowers("integer_pow")
def integer_pow(ctx: Context, x, *, y):
    """Repeated squaring; a negative power is the reciprocal of the positive one."""
    if y == 0:
        return ctx.constant(np.ones(x.shape, np.float32))
    power, square, rest = None, x, abs(y)
    while True:
        if rest & 1:
            power = square if power is None else ctx.emit("multiply", power, square)
        rest >>= 1
        if not rest:
            break
        square = ctx.emit("square", square)
    return power if y > 0 else ctx.emit("reciprocal", power)


@lowers("round")
def round_rule(ctx: Context, x, *, rounding_method):
    if int(rounding_method) != 1:
        raise ctx.fail("only rounding to nearest, ties to even, is supported (jnp.round)")
    return ctx.emit("round", x)


@lowers("select_n")
def select_n(ctx: Context, which, *cases):
    """`where`: cases[0] is the FALSE case."""
    if len(cases) != 2 or ctx.node.inputs[0].dtype.kind != "b":
        raise ctx.fail(f"a selection among {len(cases)} cases by number; use nested jnp.where")
    false, true = cases
    shape, kind = ctx.node.outputs[0].shape, ctx.node.outputs[0].dtype.kind
    if kind == "b":
        true, false = (ctx.convert(case, "float32") for case in (true, false))
    which = _spread(which, true) if isinstance(which, Known) else which
    return expand(ctx, _where(ctx, narrow(which), true, false), shape)


def _where(ctx: Context, which: Operand, true: Operand, false: Operand) -> Value:
    scalars = {"true_scalar": uniform(true), "false_scalar": uniform(false)}
    scalars = {key: number for key, number in scalars.items() if number is not None}
    if len(scalars) == 2 and ctx.value(which).dtype == "int32":
        which = ctx.convert(which, "float32")
    tensors = [narrow(case) for case in (true, false) if uniform(case) is None]
    return ctx.emit("where", which, *tensors, **scalars)


@lowers("convert_element_type")
def convert_element_type(ctx: Context, x, *, new_dtype, **_):
    new_dtype = np.dtype(new_dtype)
    if new_dtype.kind == "b":
        return ctx.emit("ne", x, scalar=0) if ctx.node.inputs[0].dtype.kind != "b" else x
    return ctx.convert(x, logical_dtype(new_dtype))


@lowers(*IDENTITY)
def identity(ctx: Context, *xs, **_):
    return list(xs)
