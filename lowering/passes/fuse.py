"""Neighbouring ops that ttnn computes in one program."""

from lowering.ir import Op, Program, Value
from lowering.ops import is_float
from lowering.passes.rewrite import Rewrite

LINEAR_ACTIVATIONS = ("relu", "silu")
BINARY_ACTIVATIONS = ("relu", "silu", "sqrt", "rsqrt", "exp", "tanh", "sigmoid", "square", "abs")


def fuse_linear(program: Program) -> Program:
    """add(matmul(x, W), b) -> linear(x, W, bias=b); relu or silu after either joins in."""
    walk = Rewrite(program)
    for op in program.ops:
        if op.name == "add" and _fuse_bias(walk, op):
            continue
        if op.name in LINEAR_ACTIVATIONS and _fuse_linear_activation(walk, op):
            continue
        walk.copy(op)
    return walk.finish()


def _fuse_bias(walk: Rewrite, op: Op) -> bool:
    for product, bias in (op.inputs, op.inputs[::-1]) if len(op.inputs) == 2 else ():
        matmul = walk.absorbs(op, product)
        if matmul is None or matmul.name != "matmul":
            continue
        weight, value = walk.new(matmul.inputs[1]), walk.new(bias)
        if len(weight.shape) != 2 or not _is_row(walk, value, op.output.shape[-1]):
            continue
        if len(value.shape) != 2:
            array = walk.builder.arrays[value.name].reshape(1, -1)
            value = walk.builder.weight(array, value.name)
        inputs = [walk.new(matmul.inputs[0]), weight, value]
        # with a core grid, bias and activation are computed in the matmul's own program
        walk.replace(op, "linear", inputs, **matmul.attrs, core_grid="full")
        return True
    return False


def _is_row(walk: Rewrite, value: Value, size: int) -> bool:
    """Whether a value is a resident weight with one number a column."""
    return value.name in walk.builder.weights and value.shape == (1,) * (len(value.shape) - 1) + (
        size,
    )


def _fuse_linear_activation(walk: Rewrite, op: Op) -> bool:
    (name,) = op.inputs
    producer = walk.builder.producers.get(walk.new(name).name)
    if producer is None or producer.name not in ("matmul", "linear"):
        return False
    inputs = [walk.builder.values[i] for i in producer.inputs]
    if "activation" in producer.attrs or len(inputs[1].shape) != 2:
        return False
    if walk.absorbs(op, name) is None:
        return False
    attrs = {**producer.attrs, "activation": op.name, "core_grid": "full"}
    walk.replace(op, "linear", inputs, **attrs)
    return True


def fuse_multiply_add(program: Program) -> Program:
    """add(multiply(a, b), c) -> addcmul(c, a, b), for tensors."""
    walk = Rewrite(program)
    for op in program.ops:
        if op.name != "add" or not _fuse_product(walk, op):
            walk.copy(op)
    return walk.finish()


def _fuse_product(walk: Rewrite, op: Op) -> bool:
    for product, addend in (op.inputs, op.inputs[::-1]) if len(op.inputs) == 2 else ():
        producer = walk.absorbs(op, product)
        if producer is None or producer.name != "multiply" or len(producer.inputs) != 2:
            continue
        if walk.new(addend).dtype == "float32":
            walk.replace(op, "addcmul", [walk.new(n) for n in (addend, *producer.inputs)])
            return True
    return False


def fuse_activations(program: Program) -> Program:
    """A unary op after a binary one becomes the binary op's activation."""
    walk = Rewrite(program)
    for op in program.ops:
        if op.name in BINARY_ACTIVATIONS and _fuse_unary(walk, op):
            continue
        walk.copy(op)
    return walk.finish()


def _fuse_unary(walk: Rewrite, op: Op) -> bool:
    (name,) = op.inputs
    producer = walk.absorbs(op, name)
    if producer is None or producer.name not in ("add", "subtract", "multiply"):
        return False
    if "activations" in producer.attrs or not is_float(producer.output):
        return False
    inputs = [walk.new(i) for i in producer.inputs]
    walk.replace(op, producer.name, inputs, **{**producer.attrs, "activations": [op.name]})
    return True
