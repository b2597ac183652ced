"""The program that the lowering produces: ttnn ops with explicit shapes, dtypes and memory.

Everything here is a frozen dataclass of plain python values, so a Program can be compared, printed
and saved as JSON. Standard library only: the runtime loads programs on machines without jax.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 2

DType = Literal["float32", "bfloat16", "bfloat8_b", "int32", "uint32", "uint16"]
Layout = Literal["tile", "row_major"]
# "rows": in L1, each 32-row block of the last two axes on a core of its own
Memory = Literal["dram", "l1", "rows"]
Policy = Literal["float32", "bfloat16", "bfloat8_b"]
Arch = Literal["wormhole_b0", "blackhole"]

# bfloat8_b: 1024 one-byte mantissas and 64 shared one-byte exponents in a 32x32 tile
BYTES_PER_TILE = {
    "float32": 4096,
    "bfloat16": 2048,
    "bfloat8_b": 1088,
    "int32": 4096,
    "uint32": 4096,
    "uint16": 2048,
}
FLOATS = ("float32", "bfloat16", "bfloat8_b")
TILE = 32


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor on the device."""

    name: str
    shape: tuple[int, ...]
    dtype: DType
    layout: Layout = "tile"
    memory: Memory = "dram"

    def padded_shape(self) -> tuple[int, ...]:
        """Shape as stored: in tile layout the last two axes are padded to multiples of 32."""
        if self.layout == "row_major":
            return self.shape
        lead, last = self.shape[:-2], (1, 1, *self.shape)[-2:]
        return (*lead, *(-(-size // TILE) * TILE for size in last))

    def num_bytes(self) -> int:
        """Bytes of the tensor as stored on the device."""
        return math.prod(self.padded_shape()) * BYTES_PER_TILE[self.dtype] // (TILE * TILE)

    def __str__(self) -> str:
        shape = ",".join(map(str, self.shape))
        marks = "" if self.layout == "tile" else " rm"
        place = "" if self.memory == "dram" else f" {self.memory}"
        return f"{self.name}:{self.dtype}[{shape}]{marks}{place}"


@dataclass(frozen=True, slots=True)
class Source:
    """Where an op comes from: jaxpr primitive, region, Flax module path, the user's line.

    `note`: what the reader of the generated code should know about it. `float32`: the op works in
    float32 under every policy.
    """

    primitive: str = ""
    region: str = ""
    module: str = ""
    line: str = ""
    note: str = ""
    float32: bool = False

    def __str__(self) -> str:
        return " ".join(
            part for part in (self.region or self.primitive, self.module, self.line) if part
        )


@dataclass(frozen=True, slots=True)
class Op:
    """One ttnn call. `attrs` holds JSON values only; `frees` names the values that die here."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    source: Source = Source()
    frees: tuple[str, ...] = ()

    def replace(self, **changes) -> "Op":
        return dataclasses.replace(self, **changes)

    @property
    def output(self) -> Value:
        """The only output; ValueError for an op with several."""
        (value,) = self.outputs
        return value

    def __str__(self) -> str:
        attrs = ", ".join(f"{key}={value!r}" for key, value in self.attrs.items())
        arguments = ", ".join([*self.inputs, attrs] if attrs else self.inputs)
        return f"{', '.join(map(str, self.outputs))} = {self.name}({arguments})"


@dataclass(frozen=True, slots=True)
class Program:
    """Straight-line ops from `inputs`, `weights` and `state` to `outputs` (names, in result order).

    `state` lies on the device from run to run; `kept` names, for each of its values, the newest
    version of it, which in-place ops have written where the value lies. `arrays` holds the weights'
    numbers by name (numpy); it is saved apart from the program.
    """

    name: str
    inputs: tuple[Value, ...]
    weights: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    policy: Policy = "float32"
    arch: Arch = "wormhole_b0"
    arrays: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    state: tuple[Value, ...] = ()
    kept: tuple[str, ...] = ()

    def replace(self, **changes) -> "Program":
        return dataclasses.replace(self, **changes)

    def values(self) -> dict[str, Value]:
        """Every value of the program by name."""
        produced = (value for op in self.ops for value in op.outputs)
        given = (*self.inputs, *self.weights, *self.state)
        return {value.name: value for value in (*given, *produced)}

    def uses(self) -> dict[str, list[int]]:
        """Value name -> indices of the ops that read it; len(ops) for results and kept state."""
        uses: dict[str, list[int]] = {}
        for index, name in self._reads():
            uses.setdefault(name, []).append(index)
        return uses

    def _reads(self) -> Iterator[tuple[int, str]]:
        for index, op in enumerate(self.ops):
            yield from ((index, name) for name in op.inputs)
        yield from ((len(self.ops), name) for name in (*self.outputs, *self.kept))

    def __str__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        head = f"program {self.name} ({inputs}) policy={self.policy} arch={self.arch}"
        weights = [f"  weight {value}" for value in self.weights]
        weights += [f"  state {value}" for value in self.state]
        ops = [f"  {op}" + (f"  # {op.source}" if str(op.source) else "") for op in self.ops]
        return "\n".join([head, *weights, *ops, f"  return {', '.join(self.outputs)}"])


def to_json(program: Program) -> dict[str, Any]:
    """A Program as JSON values."""
    fields = dataclasses.asdict(program.replace(arrays={}))
    del fields["arrays"]
    return {"schema": SCHEMA_VERSION, **fields}


def from_json(data: Mapping[str, Any]) -> Program:
    """The Program that `to_json` wrote; ValueError for another schema or a malformed field."""
    if data.get("schema") != SCHEMA_VERSION:
        raise ValueError(
            f"program schema is {data.get('schema')!r}; this version reads {SCHEMA_VERSION}"
        )
    try:
        return Program(
            name=data["name"],
            inputs=tuple(map(_value, data["inputs"])),
            weights=tuple(map(_value, data["weights"])),
            ops=tuple(map(_op, data["ops"])),
            outputs=tuple(data["outputs"]),
            policy=data["policy"],
            arch=data["arch"],
            state=tuple(map(_value, data["state"])),
            kept=tuple(data["kept"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"malformed program: {error!r}") from error


def _value(data: Mapping[str, Any]) -> Value:
    return Value(**{**data, "shape": tuple(data["shape"])})


def _op(data: Mapping[str, Any]) -> Op:
    return Op(
        name=data["name"],
        inputs=tuple(data["inputs"]),
        outputs=tuple(map(_value, data["outputs"])),
        attrs=data["attrs"],
        source=Source(**data["source"]),
        frees=tuple(data["frees"]),
    )
