"""How an Op becomes a ttnn call: tokens that the executor evaluates and the code generator prints.

Standard library only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowering.ir import TILE, Op, Value
from lowering.ops import OPS, Fidelity, fidelity

# ops whose function in ttnn has another name
FUNCTIONS: dict[str, str] = {
    "scaled_dot_product_attention": "transformer.scaled_dot_product_attention",
    "scaled_dot_product_attention_decode": "transformer.scaled_dot_product_attention_decode",
    "paged_update_cache": "experimental.paged_update_cache",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the program."""

    name: str


@dataclass(frozen=True, slots=True)
class Tensors:
    """A list of values."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """A python literal: number, string, bool, None, or a list of those."""

    value: Any


@dataclass(frozen=True, slots=True)
class DTypeName:
    """`ttnn.<name>`: a dtype."""

    name: str


@dataclass(frozen=True, slots=True)
class LayoutName:
    """ttnn's layout constant for "tile" or "row_major"."""

    name: str


@dataclass(frozen=True, slots=True)
class Activations:
    """A list of unary functions that a binary op applies to its result, by name."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FullGrid:
    """`ttnn.CoreGrid` of all the device's cores."""


@dataclass(frozen=True, slots=True)
class ProgramConfig:
    """A matmul with one operand sent to all cores, each with its part of the other.

    `cores`: columns and rows of cores that take part; None for all of the device.
    """

    fields: Mapping[str, Any]
    cores: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Attention in chunks of queries and of keys, with the exact exponential."""

    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ComputeConfig:
    """A compute config of some math fidelity: float32 accumulation, no approximations."""

    fidelity: Fidelity


@dataclass(frozen=True, slots=True)
class MemoryName:
    """ttnn's memory config for "dram" or "l1", interleaved over all banks."""

    name: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A memory config: blocks of `height` rows in the L1 of `count` cores, one each."""

    count: int
    height: int
    width: int


Token = (
    Tensor
    | Tensors
    | Constant
    | DTypeName
    | LayoutName
    | Activations
    | FullGrid
    | ComputeConfig
    | ProgramConfig
    | AttentionConfig
    | MemoryName
    | Rows
)


@dataclass(frozen=True, slots=True)
class Call:
    """`ttnn.<function>(*positional, **keywords)`."""

    function: str
    positional: tuple[Token, ...]
    keywords: Mapping[str, Token]


def make_call(op: Op, values: Mapping[str, Value]) -> Call:
    """The call that computes an op; KeyError for an op outside the table.

    `values`: every value of the program by name. The memory config is stated where a result or an
    operand lies in L1, because most ops put their result where their operand is.
    """
    spec = OPS[op.name]
    split = spec.arity[1] - len(spec.keywords)
    tensors = [Tensor(name) for name in op.inputs[:split]]
    positional: list[Token] = [Tensors(op.inputs)] if spec.list_inputs else list(tensors)
    keywords: dict[str, Token] = {
        keyword: Tensor(name)
        for keyword, name in zip(spec.keywords, op.inputs[split:], strict=False)
    }
    if op.name == "where":
        positional = _where(op, tensors)
    else:
        positional += [_attr(key, op.attrs[key]) for key in spec.positional if key in op.attrs]
    keywords |= {
        key: _attr(key, value) for key, value in op.attrs.items() if key not in spec.positional
    }
    if (chosen := fidelity(op, values)) is not None:
        keywords["compute_kernel_config"] = ComputeConfig(chosen)
    if op.outputs[0].memory == "rows":
        *lead, height, width = op.outputs[0].padded_shape()
        keywords["memory_config"] = Rows(math.prod(lead) * height // TILE, TILE, width)
    places = {op.outputs[0].memory, *(values[name].memory for name in op.inputs)}
    if spec.memory and places != {"dram"}:
        keywords["memory_config"] = MemoryName(op.outputs[0].memory)
    return Call(FUNCTIONS.get(op.name, op.name), tuple(positional), keywords)


def _where(op: Op, tensors: list[Tensor]) -> list[Token]:
    """Condition, true branch, false branch; a branch is the next tensor unless an attr gives it."""
    rest = iter(tensors[1:])
    branches = ("true_scalar", "false_scalar")
    return [
        tensors[0],
        *(Constant(op.attrs[key]) if key in op.attrs else next(rest) for key in branches),
    ]


def _attr(key: str, value: Any) -> Token:
    if key == "dtype":
        return DTypeName(value)
    if key == "layout":
        return LayoutName(value)
    if key == "core_grid":
        return FullGrid()
    if key == "program_config":
        return AttentionConfig(value) if "q_chunk_size" in value else _program_config(value)
    if key == "activations":
        return Activations(tuple(value))
    return Constant(list(value) if isinstance(value, tuple) else value)


def _program_config(attrs: Mapping[str, Any]) -> ProgramConfig:
    fields = {key: value for key, value in attrs.items() if key != "cores"}
    return ProgramConfig(fields, tuple(attrs["cores"]) if "cores" in attrs else None)
