"""A small program with weights, sample and folder; a stand-in for the ttnn module."""

import hashlib
import importlib.util
import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lowering.ir import Op, Program, Source, Value, to_json
from lowering.ops import infer

HERE = Path(__file__).parent


def chain(values, steps):
    """Ops from (name, inputs, results, attrs); shapes and dtypes come from the table."""
    known, ops = {value.name: value for value in values}, []
    for name, inputs, results, attrs in steps:
        typed = infer(name, [known[i] for i in inputs], attrs)
        outputs = tuple(
            Value(result, tuple(shape), dtype)
            for result, (shape, dtype) in zip(results, typed, strict=True)
        )
        known.update({value.name: value for value in outputs})
        ops.append(Op(name, tuple(inputs), outputs, attrs, Source(module=f"Model/{name}")))
    return tuple(ops)


def free_at_last_use(program):
    uses = program.uses()
    outside = {value.name for value in program.weights} | set(program.outputs)
    ops = [
        op.replace(
            frees=tuple(
                name
                for name in dict.fromkeys(op.inputs)
                if name not in outside and uses[name][-1] == i
            )
        )
        for i, op in enumerate(program.ops)
    ]
    return program.replace(ops=tuple(ops))


@pytest.fixture
def small():
    """y = relu(x @ kernel + bias) * scale in 2 results; `expected(inputs)` computes them."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(6, 8)).astype(np.float32),
        "bias": rng.normal(size=(1, 8)).astype(np.float32),
    }
    values = (
        Value("x", (4, 6), "float32"),
        Value("scale", (), "float32"),
        Value("kernel", (6, 8), "float32"),
        Value("bias", (1, 8), "float32", memory="l1"),
    )
    ops = chain(
        values,
        [
            (
                "linear",
                ["x", "kernel", "bias"],
                ["hidden"],
                {"activation": "relu", "core_grid": "full"},
            ),
            ("multiply", ["hidden", "scale"], ["scaled"], {}),
            ("reshape", ["scaled"], ["folded"], {"shape": [2, 2, 8]}),
            (
                "topk",
                ["hidden"],
                ["best", "where"],
                {"k": 2, "dim": -1, "largest": True, "sorted": True, "stable": True},
            ),
        ],
    )
    program = Program("small", values[:2], values[2:], ops, ("folded", "best"))

    def expected(inputs):
        hidden = np.maximum(inputs["x"] @ weights["kernel"] + weights["bias"], 0)
        return [(hidden * inputs["scale"]).reshape(2, 2, 8), -np.sort(-hidden, -1)[:, :2]]

    def batch(seed):
        rng = np.random.default_rng(seed)
        return {"x": rng.normal(size=(4, 6)).astype(np.float32), "scale": np.float32(seed + 1)}

    return SimpleNamespace(
        program=free_at_last_use(program), weights=weights, expected=expected, batch=batch
    )


def write_tensors(path, arrays):
    """A safetensors file: float32, int32, or ("BF16", uint16 array)."""
    header, data, start = {}, b"", 0
    for name, array in arrays.items():
        kind, array = array if isinstance(array, tuple) else (None, np.asarray(array))
        kind = kind or {"f": "F32", "i": "I32"}[array.dtype.kind]
        blob = np.ascontiguousarray(array).tobytes()
        span = [start, start + len(blob)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": span}
        data, start = data + blob, start + len(blob)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def seal(folder, **changes):
    """Write the manifest of what lies in the folder."""
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    manifest = {"schema": 1, "files": files, "tolerances": {}, **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def saved(small, tmp_path):
    """The small program as a folder."""
    folder = tmp_path / "program"
    folder.mkdir()
    inputs = small.batch(0)
    outputs = small.expected(inputs)
    (folder / "program.json").write_text(json.dumps(to_json(small.program)))
    write_tensors(folder / "weights.safetensors", small.weights)
    sample = {f"input.{name}": array for name, array in inputs.items()}
    sample |= {f"output.{index}": array for index, array in enumerate(outputs)}
    sample["op.scaled"] = outputs[0].reshape(4, 8)
    write_tensors(folder / "sample.safetensors", sample)
    seal(folder)
    return folder


@pytest.fixture
def fake(monkeypatch):
    """Our stand-in in place of ttnn, as a card would be seen."""
    monkeypatch.delenv("TT_METAL_MOCK_CLUSTER_DESC_PATH", raising=False)
    monkeypatch.delenv("TT_METAL_SIMULATOR", raising=False)
    spec = importlib.util.spec_from_file_location("ttnn", HERE / "fake_ttnn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "ttnn", module)
    return module


@pytest.fixture
def tools():
    return SimpleNamespace(
        chain=chain, write_tensors=write_tensors, seal=seal, free_at_last_use=free_at_last_use
    )
