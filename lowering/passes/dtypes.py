"""Device dtypes: bfloat16 or bfloat8_b where the policy allows, else float32."""

from lowering.builder import Builder
from lowering.infer_shapes import widens
from lowering.ir import DType, Op, Program, Value
from lowering.ops import COMPARISONS, OPS, is_float
from lowering.passes.rewrite import Rewrite

# ops that only move data: their result has the dtype of their input
IN_PLACE = frozenset(name for name, spec in OPS.items() if spec.in_place is not None)
MOVES = frozenset({"reshape", "permute", "slice", "pad", "expand", "concat", "gather"}) | IN_PLACE
# ops whose float operands may differ in dtype
PRODUCTS = frozenset({"matmul", "linear", "sparse_matmul"})
# ops that can write another dtype than they read, at no cost
ARITHMETIC = ("add", "subtract", "multiply", "divide", "rsub")
RETYPING = frozenset({*PRODUCTS, *ARITHMETIC, *COMPARISONS, "typecast"})


def assign_dtypes(program: Program) -> Program:
    """Rebuild the program (float32 and integers so far) with the dtypes of its policy.

    An op from a float32 region works in float32, every other one in bfloat16; typecasts go in where
    the two meet, and a weight that both read is stored twice.
    """
    if program.policy == "float32":
        return program
    walk = _Typed(program)
    for op in program.ops:
        walk.place(op)
    walk.place_constant_results()
    return walk.finish()


def _target(op: Op) -> DType:
    return "float32" if op.source.float32 else "bfloat16"


class _Typed(Rewrite):
    def __init__(self, program: Program):
        super().__init__(program)
        self._old_values = program.values()
        self._cast: dict[tuple[str, DType], Value] = {}
        self._type_inputs(program)

    def _type_inputs(self, program: Program) -> None:
        """Inputs and state get their dtype at once, weights when an op asks for one."""
        inputs = tuple(map(self._typed_input, program.inputs))
        state = tuple(map(self._typed_input, program.state))
        self.builder = Builder(program.policy)
        self.builder.adopt(program.replace(inputs=inputs, state=state, weights=(), arrays={}))
        for value in (*inputs, *state):
            self.alias(value.name, value)

    def _typed_input(self, value: Value) -> Value:
        if not is_float(value):
            return value
        readers = [self.old.ops[i] for i in self.uses.get(value.name, ()) if i < len(self.old.ops)]
        precise = any(_target(op) == "float32" for op in readers if op.name in PRODUCTS)
        precise |= "float32" in self.wanted(value.name)
        dtype: DType = "float32" if precise else "bfloat16"
        return Value(value.name, value.shape, dtype, value.layout, value.memory)

    def wanted(self, name: str) -> set[DType]:
        """The dtypes that the readers of an old value would like it in."""
        found: set[DType] = set()
        for index in self.uses.get(name, ()):
            if index == len(self.old.ops):
                continue
            op = self.old.ops[index]
            if op.name in MOVES:
                if op.name in IN_PLACE and name != op.inputs[OPS[op.name].in_place or 0]:
                    continue  # it takes the dtype of the state
                found |= set().union(*(self.wanted(value.name) for value in op.outputs))
            elif op.name not in PRODUCTS:
                found.add(_target(op))
        return found

    def place(self, op: Op) -> None:
        target = _target(op)
        inputs = [self._operand(op, index, target) for index in range(len(op.inputs))]
        attrs = dict(op.attrs)
        if op.name in RETYPING and is_float(op.output):
            wanted = self.wanted(op.output.name)
            result = wanted.pop() if len(wanted) == 1 else target
            attrs.pop("dtype", None)
            if op.name not in PRODUCTS and not widens(inputs, result):
                result = target
            if inputs[0].dtype != result:
                attrs["dtype"] = result
            elif op.name == "typecast":
                self.alias(op.output.name, inputs[0])
                return
        self.replace(op, op.name, inputs, **attrs)

    def place_constant_results(self) -> None:
        """Weights that are results keep all their digits."""
        for name in self.old.outputs:
            if name in self.old.arrays:
                self.alias(name, self._weight(name, self._old_values[name].dtype))

    def _operand(self, op: Op, index: int, target: DType) -> Value:
        name = op.inputs[index]
        old = self._old_values[name]
        weight = name in self.old.arrays
        if not is_float(old):
            return self._weight(name, old.dtype) if weight else self.new(name)
        if weight:
            dtype = self._weight_dtype(op, index, target)
            return self._weight(name, self._state_dtype(op) if op.name in IN_PLACE else dtype)
        value = self.new(name)
        if op.name in IN_PLACE:
            return self._typecast(op, value, self._state_dtype(op))
        if op.name in PRODUCTS or op.name == "typecast":
            return value
        if op.name in MOVES and not self._mixed(op):
            return value
        return self._typecast(op, value, target)

    def _state_dtype(self, op: Op) -> DType:
        """The dtype of the state that an in-place op writes."""
        return self.new(op.inputs[OPS[op.name].in_place or 0]).dtype

    def _weight_dtype(self, op: Op, index: int, target: DType) -> DType:
        """Matrices of plain products may be stored in the block format."""
        block = self.old.policy == "bfloat8_b" and target == "bfloat16"
        return "bfloat8_b" if block and op.name in PRODUCTS and index < 2 else target

    def _weight(self, name: str, dtype: DType) -> Value:
        key = (name, dtype)
        if key not in self._cast:
            self._cast[key] = self.builder.weight(self.old.arrays[name], name, dtype)
        return self._cast[key]

    def _mixed(self, op: Op) -> bool:
        dtypes = {self.new(n).dtype for n in op.inputs if n not in self.old.arrays}
        return op.name == "concat" and len(dtypes | {_target(op)}) > 1

    def _typecast(self, op: Op, value: Value, dtype: DType) -> Value:
        if value.dtype == dtype:
            return value
        key = (value.name, dtype)
        if key not in self._cast:
            self._cast[key] = self.emit(op, "typecast", [value], dtype=dtype)
        return self._cast[key]
