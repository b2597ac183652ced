"""Program -> a readable, runnable python module of ttnn calls.

The text stands on its own: it needs ttnn, numpy and safetensors, and the weights beside it.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

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

L1, DRAM = ttnn.L1_MEMORY_CONFIG, ttnn.DRAM_MEMORY_CONFIG
TILE, ROWS = ttnn.TILE_LAYOUT, ttnn.ROW_MAJOR_LAYOUT


def precise(fidelity):
    """float32 accumulation and no approximate functions."""
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=fidelity,
        math_approx_mode=False,
        fp32_dest_acc_en=True,
        packer_l1_acc=True,
    )


HIFI3, HIFI4 = precise(ttnn.MathFidelity.HiFi3), precise(ttnn.MathFidelity.HiFi4)


def shared_operand(size, **sizes):
    """A matmul with one operand sent to all cores, each with its part of the other."""
    return ttnn.MatmulMultiCoreReuseMultiCast1DProgramConfig(
        compute_with_storage_grid_size=size, fused_activation=None, **sizes
    )


def rows_on_cores(size, count, height, width):
    """A tensor cut into blocks of rows, one in the L1 of each core."""
    return ttnn.create_sharded_memory_config(
        (height, width),
        core_grid=ttnn.num_cores_to_corerangeset(count, size, True),
        strategy=ttnn.ShardStrategy.HEIGHT,
        use_height_and_width_as_shard_shape=True,
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
    tensor = ttnn.Tensor(np.require(array, requirements=["C", "W"]), dtype)
    tensor = tensor if dtype == ttnn.bfloat8_b else tensor.to(layout)
    tensor = ttnn.to_device(tensor, device, memory_config=memory_config)
    return tensor if array.shape else ttnn.reshape(tensor, ())


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
    state = {name: upload(device, sample[f"before.{name}"], *STATE[name]) for name in STATE}
    for index, tensor in enumerate(forward(device, w, *([state] if state else []), *inputs)):
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
    groups = {"INPUTS": program.inputs, "WEIGHTS": program.weights, "STATE": program.state}
    tables = [_table(name, values) for name, values in groups.items()]
    return "\n".join([head, *tables, *_forward(program)]) + TAIL


def _table(name: str, values: Sequence[Value]) -> str:
    """name -> (dtype, layout, memory) of tensors that the host uploads."""
    if not values:
        return f"{name} = {{}}"
    rows = [
        f'    "{v.name}": ({_kind(v)}, {_layout(v.layout)}, {_memory(v.memory)}),  # {_shape(v)}'
        for v in values
    ]
    return "\n".join([f"{name} = {{", *rows, "}"])


def _forward(program: Program) -> list[str]:
    state = ["state"] if program.state else []
    arguments = ", ".join(["device", "w", *state, *(value.name for value in program.inputs)])
    lines = ["", "", f"def forward({arguments}):", f'    """{_summary(program)}"""']
    lines.append("    size = device.compute_with_storage_grid_size()")
    if any(op.attrs.get("core_grid") for op in program.ops):
        lines.append("    grid = ttnn.CoreGrid(y=size.y, x=size.x)")
    values = program.values()
    resident = {value.name: f'w["{value.name}"]' for value in program.weights}
    resident |= {value.name: f'state["{value.name}"]' for value in program.state}
    before = None
    for op in program.ops:
        place = _place(op.source)
        if place != before:
            lines += ["", *(f"    # {part}" for part in (place, op.source.note) if part)]
            before = place
        lines += _statement(op, make_call(op, values), resident)
    lines += ["", f"    return [{', '.join(_reference(n, resident) for n in program.outputs)}]", ""]
    return lines


def _summary(program: Program) -> str:
    inputs = ", ".join(f"{value.name} {_shape(value)}" for value in program.inputs)
    values = program.values()
    outputs = ", ".join(_shape(values[name]) for name in program.outputs)
    return f"{inputs} -> {outputs}"


def _place(source: Source) -> str:
    return "  ".join(part for part in (source.module, source.region, source.line) if part)


def _statement(op: Op, call: Call, resident: Mapping[str, str]) -> list[str]:
    """The call, its result's shape and dtype, and the values that die with it."""
    names = ", ".join(value.name for value in op.outputs)
    note = ", ".join(f"{_shape(v)} {v.dtype}" for v in op.outputs)
    line = f"    {names} = {_call_text(call, resident)}  # {note}"
    lines = [line] if len(line) <= WIDTH else [f"    # {note}", *_wrapped(names, call, resident)]
    return [*lines, f"    del {', '.join(op.frees)}"] if op.frees else lines


def _wrapped(names: str, call: Call, resident: Mapping[str, str]) -> list[str]:
    line = f"    {names} = {_call_text(call, resident)}"
    if len(line) <= WIDTH:
        return [line]
    inner = ", ".join(_arguments(call, resident))
    body = textwrap.wrap(inner, WIDTH - 8, break_long_words=False, break_on_hyphens=False)
    return [
        f"    {names} = ttnn.{call.function}(",
        *(f"        {part}" for part in body),
        "    )",
    ]


def _call_text(call: Call, resident: Mapping[str, str]) -> str:
    return f"ttnn.{call.function}({', '.join(_arguments(call, resident))})"


def call_text(op: Op, program: Program) -> str:
    """One op as it stands in the generated module, weights by bare name."""
    return _call_text(make_call(op, program.values()), {})


def _arguments(call: Call, resident: Mapping[str, str]) -> list[str]:
    keywords = [f"{key}={_token(token, resident)}" for key, token in call.keywords.items()]
    return [*(_token(token, resident) for token in call.positional), *keywords]


def _token(token: Token, resident: Mapping[str, str]) -> str:
    match token:
        case calls.Tensor(name):
            return _reference(name, resident)
        case calls.Tensors(names):
            return f"[{', '.join(_reference(name, resident) for name in names)}]"
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
        case calls.ComputeConfig(fidelity):
            return fidelity.upper()
        case calls.ProgramConfig(fields, cores):
            size = f"ttnn.CoreCoord{cores}" if cores else "size"
            sizes = ", ".join(f"{key}={value!r}" for key, value in fields.items())
            return f"shared_operand({size}, {sizes})"
        case calls.AttentionConfig(fields):
            sizes = ", ".join(f"{key}={value!r}" for key, value in fields.items())
            return f"chunks(size, {sizes})"
        case calls.MemoryName(name):
            return _memory(name)
        case calls.Rows(count, height, width):
            return f"rows_on_cores(size, {count}, {height}, {width})"
        case _:
            raise TypeError(f"no text for the token {token!r}")


def _reference(name: str, resident: Mapping[str, str]) -> str:
    return resident.get(name, name)


def _kind(value: Value) -> str:
    return f"ttnn.{value.dtype}"


def _layout(name: str) -> str:
    return "TILE" if name == "tile" else "ROWS"


def _memory(name: str) -> str:
    return name.upper()


def _shape(value: Value) -> str:
    return f"[{', '.join(map(str, value.shape))}]"
