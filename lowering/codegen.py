"""Program -> a readable, runnable python module of ttnn calls.

The text stands on its own: it needs ttnn, numpy and safetensors, and the weights beside it.
"""

import math
import textwrap
from collections.abc import Iterable

from lowering.ir import Op, Program, Source, Value
from lowering.runtime import calls
from lowering.runtime.calls import Call, Token, make_call

WIDTH = 100
HEAD = '''"""{title}

Generated; policy {policy}, {arch}. `python model.py` runs the sample beside this file
and prints how close the results are.
"""

import sys
from pathlib import Path

import numpy as np
import safetensors
import ttnn

PRECISE = ttnn.WormholeComputeKernelConfig(
    math_fidelity=ttnn.MathFidelity.HiFi4,
    math_approx_mode=False,
    fp32_dest_acc_en=True,
    packer_l1_acc=True,
)

L1, DRAM = ttnn.L1_MEMORY_CONFIG, ttnn.DRAM_MEMORY_CONFIG
TILE, ROWS = ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT


def rows_per_core(size, **sizes):
    """A matmul whose right operand is sent to all cores, each with its rows of the left one."""
    return ttnn.MatmulMultiCoreReuseMultiCast1DProgramConfig(
        compute_with_storage_grid_size=size, fused_activation=None, **sizes
    )


def chunks(size, **sizes):
    """Attention in chunks of queries and of keys, with the exact exponential."""
    return ttnn.SDPAProgramConfig(
        compute_with_storage_grid_size=size, exp_approx_mode=False, **sizes
    )

'''
TAIL = '''

def read(path):
    """The tensors of a safetensors file; bfloat16 comes as float32."""
    kinds = {"F32": "<f4", "BF16": "<u2", "I32": "<i4", "U32": "<u4"}
    tensors = {}
    for name, fields in safetensors.deserialize(Path(path).read_bytes()):
        array = np.frombuffer(fields["data"], kinds[fields["dtype"]]).reshape(fields["shape"])
        bfloat16 = fields["dtype"] == "BF16"
        tensors[name] = (array.astype(np.uint32) << 16).view(np.float32) if bfloat16 else array
    return tensors


def upload(device, array, dtype, layout, memory_config):
    """A numpy array as a device tensor."""
    array = array.astype(np.uint32) if dtype == ttnn.uint32 else array
    tensor = ttnn.Tensor(np.ascontiguousarray(array), dtype)
    tensor = tensor if dtype == ttnn.bfloat8_b else tensor.to(layout)
    return ttnn.to_device(tensor, device, memory_config=memory_config)


def download(tensor):
    """A device tensor as float32 or integers."""
    host = tensor.cpu()
    host = host if host.dtype == ttnn.bfloat8_b else host.to(ttnn.ROW_MAJOR_LAYOUT)
    host = ttnn.to_dtype(host, ttnn.float32) if host.dtype == ttnn.bfloat16 else host
    return host.to_numpy()


def main(folder):
    sample, arrays = read(folder / "sample.safetensors"), read(folder / "weights.safetensors")
    device = ttnn.open_device(device_id=0)
    w = {name: upload(device, arrays[name], *WEIGHTS[name]) for name in WEIGHTS}
    inputs = [upload(device, sample[f"input.{name}"], *INPUTS[name]) for name in INPUTS]
    for index, tensor in enumerate(forward(device, w, *inputs)):
        found, expected = download(tensor), sample[f"output.{index}"]
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        print(f"output {index}: relative L2 error {error:.3g}")
    ttnn.close_device(device)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
'''


def generate(program: Program) -> str:
    """The module's text."""
    title = f"{program.name} on ttnn: {len(program.ops)} ops, {len(program.weights)} weights."
    head = HEAD.format(title=title, policy=program.policy, arch=program.arch)
    tables = [_table("INPUTS", program.inputs), _table("WEIGHTS", program.weights)]
    return "\n".join([head, *tables, *_forward(program)]) + TAIL


def _table(name: str, values: Iterable[Value]) -> str:
    """name -> (dtype, layout, memory) of tensors that the host uploads."""
    rows = [
        f'    "{v.name}": ({_kind(v)}, {_layout(v.layout)}, {_memory(v.memory)}),  # {_shape(v)}'
        for v in values
    ]
    return "\n".join([f"{name} = {{", *rows, "}"])


def _forward(program: Program) -> list[str]:
    arguments = ", ".join(["device", "w", *(value.name for value in program.inputs)])
    lines = ["", "", f"def forward({arguments}):", f'    """{_summary(program)}"""']
    lines.append("    size = device.compute_with_storage_grid_size()")
    if any(op.attrs.get("core_grid") for op in program.ops):
        lines.append("    grid = ttnn.CoreGrid(y=size.y, x=size.x)")
    weights, values = {value.name for value in program.weights}, program.values()
    before = None
    for op in program.ops:
        place = _place(op.source)
        if place != before:
            lines += ["", *(f"    # {part}" for part in (place, op.source.note) if part)]
            before = place
        lines += _statement(op, make_call(op, values), weights)
    lines += ["", f"    return [{', '.join(_reference(n, weights) for n in program.outputs)}]", ""]
    return lines


def _summary(program: Program) -> str:
    inputs = ", ".join(f"{value.name} {_shape(value)}" for value in program.inputs)
    values = program.values()
    outputs = ", ".join(_shape(values[name]) for name in program.outputs)
    return f"{inputs} -> {outputs}"


def _place(source: Source) -> str:
    return "  ".join(part for part in (source.module, source.region, source.line) if part)


def _statement(op: Op, call: Call, weights: set[str]) -> list[str]:
    """The call, its result's shape and dtype, and the values that die with it."""
    names = ", ".join(value.name for value in op.outputs)
    note = ", ".join(f"{_shape(v)} {v.dtype}" for v in op.outputs)
    line = f"    {names} = {_call_text(call, weights)}  # {note}"
    lines = [line] if len(line) <= WIDTH else [f"    # {note}", *_wrapped(names, call, weights)]
    return [*lines, f"    del {', '.join(op.frees)}"] if op.frees else lines


def _wrapped(names: str, call: Call, weights: set[str]) -> list[str]:
    line = f"    {names} = {_call_text(call, weights)}"
    if len(line) <= WIDTH:
        return [line]
    inner = ", ".join(_arguments(call, weights))
    body = textwrap.wrap(inner, WIDTH - 8, break_long_words=False, break_on_hyphens=False)
    return [
        f"    {names} = ttnn.{call.function}(",
        *(f"        {part}" for part in body),
        "    )",
    ]


def _call_text(call: Call, weights: set[str]) -> str:
    return f"ttnn.{call.function}({', '.join(_arguments(call, weights))})"


def call_text(op: Op, program: Program) -> str:
    """One op as it stands in the generated module, weights by bare name."""
    return _call_text(make_call(op, program.values()), set())


def _arguments(call: Call, weights: set[str]) -> list[str]:
    keywords = [f"{key}={_token(token, weights)}" for key, token in call.keywords.items()]
    return [*(_token(token, weights) for token in call.positional), *keywords]


def _token(token: Token, weights: set[str]) -> str:
    match token:
        case calls.Tensor(name):
            return _reference(name, weights)
        case calls.Tensors(names):
            return f"[{', '.join(_reference(name, weights) for name in names)}]"
        case calls.Constant(float(value)) if not math.isfinite(value):
            return f'float("{value}")'
        case calls.Constant(value):
            return repr(value)
        case calls.DTypeName(name):
            return f"ttnn.{name}"
        case calls.LayoutName(name):
            return _layout(name)
        case calls.Activations(names):
            kinds = (f"ttnn.UnaryWithParam(ttnn.UnaryOpType.{name.upper()})" for name in names)
            return f"[{', '.join(kinds)}]"
        case calls.FullGrid():
            return "grid"
        case calls.PreciseConfig():
            return "PRECISE"
        case calls.ProgramConfig(fields):
            sizes = ", ".join(f"{key}={value!r}" for key, value in fields.items())
            return f"rows_per_core(size, {sizes})"
        case calls.AttentionConfig(fields):
            sizes = ", ".join(f"{key}={value!r}" for key, value in fields.items())
            return f"chunks(size, {sizes})"
        case calls.MemoryName(name):
            return _memory(name)
        case _:
            raise TypeError(f"no text for the token {token!r}")


def _reference(name: str, weights: set[str]) -> str:
    return f'w["{name}"]' if name in weights else name


def _kind(value: Value) -> str:
    return f"ttnn.{value.dtype}"


def _layout(name: str) -> str:
    return "TILE" if name == "tile" else "ROWS"


def _memory(name: str) -> str:
    return name.upper()


def _shape(value: Value) -> str:
    return f"[{', '.join(map(str, value.shape))}]"
