"""Reads the folder of a lowered program, and believes nothing in it before it is checked."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from lowering.ir import Program, Value, from_json
from lowering.runtime.verify import verify

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
PROGRAM, WEIGHTS, SAMPLE = "program.json", "weights.safetensors", "sample.safetensors"
NUMPY = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclass(frozen=True)
class Sample:
    """What a program takes and should give: inputs, outputs, state before and after the run."""

    inputs: Mapping[str, np.ndarray]
    outputs: Sequence[np.ndarray]
    before: Mapping[str, np.ndarray] = field(default_factory=dict)
    after: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """A checked program with its weights, sample tensors and manifest.

    `sample` holds `input.<name>`, `output.<i>`, `before.<state>`, `after.<state>` and, where they
    were recorded, `op.<value name>`.
    """

    program: Program
    weights: Mapping[str, np.ndarray]
    sample: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]

    def example(self) -> Sample:
        """The sample; ValueError for a part that the folder has not."""
        inputs = self.inputs()
        before, after = (self._named(key, self.program.state) for key in ("before", "after"))
        return Sample(inputs, self.outputs(), before, after)

    def outputs(self) -> list[np.ndarray]:
        """The sample's expected outputs; ValueError when one is missing."""
        count = len(self.program.outputs)
        missing = [index for index in range(count) if f"output.{index}" not in self.sample]
        if missing:
            raise ValueError(f"{SAMPLE} has no expected value for the outputs {missing}")
        return [self.sample[f"output.{index}"] for index in range(count)]

    def inputs(self) -> dict[str, np.ndarray]:
        """The sample's inputs by name; ValueError when the folder has none."""
        return self._named("input", self.program.inputs)

    def golden(self) -> dict[str, np.ndarray]:
        """What JAX computed for values of the program, by name, as far as it was recorded."""
        recorded = (name for name in self.sample if name.startswith("op."))
        return {name.removeprefix("op."): self.sample[name] for name in recorded}

    def _named(self, kind: str, values: Sequence[Value]) -> dict[str, np.ndarray]:
        missing = [value.name for value in values if f"{kind}.{value.name}" not in self.sample]
        if missing:
            raise ValueError(f"{SAMPLE} has no value for the {kind}s {missing}")
        return {value.name: self.sample[f"{kind}.{value.name}"] for value in values}


def load(directory: str | Path) -> Folder:
    """The program in `directory`; ValueError for a missing, altered or malformed part.

    Checks the hash of every file that the manifest lists, that the program holds only known ops on
    matching shapes, and that each weight is there.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one that `moejax lower` wrote")
    manifest = _json(folder / MANIFEST)
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise ValueError(
            f"{folder / MANIFEST}: schema is {manifest.get('schema')!r};"
            f" this version reads {MANIFEST_SCHEMA}"
        )
    _check_hashes(folder, manifest.get("files"))
    program = load_program(folder)
    weights = _weights(program, read_tensors(folder / WEIGHTS))
    has_sample = SAMPLE in manifest["files"]
    sample = read_tensors(folder / SAMPLE) if has_sample else {}
    return Folder(program, weights, sample, manifest)


def load_program(directory: str | Path) -> Program:
    """The checked program of a folder, without its weights."""
    path = Path(directory) / PROGRAM
    try:
        program = from_json(_json(path))
        verify(program)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return program


def program_folders(directory: str | Path) -> list[Path]:
    """The folder itself, or those of the programs in it."""
    folder = Path(directory)
    within = [] if (folder / PROGRAM).is_file() else sorted(folder.glob(f"*/{PROGRAM}"))
    return [path.parent for path in within] or [folder]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file; bfloat16 comes as float32. ValueError for a damaged file."""
    try:
        tensors = safetensors.deserialize(path.read_bytes())
        return {name: _decode(fields) for name, fields in tensors}
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _decode(fields: Mapping[str, Any]) -> np.ndarray:
    kind = fields["dtype"]
    if kind not in NUMPY:
        raise ValueError(f"tensors of type {kind} are not supported; use {', '.join(NUMPY)}")
    array = np.frombuffer(fields["data"], NUMPY[kind]).reshape(fields["shape"])
    if kind == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _weights(program: Program, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    def find(value: Value) -> np.ndarray:
        if value.name not in arrays:
            raise ValueError(f"{WEIGHTS} has no tensor for the weight {value}")
        array = arrays[value.name]
        if array.shape != value.shape:
            raise ValueError(f"{WEIGHTS}: {value.name!r} has shape {array.shape}, not {value}")
        return array

    return {value.name: find(value) for value in program.weights}


def _check_hashes(folder: Path, files: Any) -> None:
    if not isinstance(files, dict) or not {PROGRAM, WEIGHTS} <= files.keys():
        raise ValueError(f"{folder / MANIFEST} must list the hashes of {PROGRAM} and {WEIGHTS}")
    for name, expected in files.items():
        path = folder / name
        if path.parent != folder or not path.is_file():
            raise ValueError(f"{folder / MANIFEST} lists {name!r}, which is no file of the folder")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ValueError(
                f"{path} was changed after it was written: its sha256 is {found}, the manifest"
                f" says {expected}; lower the model again"
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")
    return data
