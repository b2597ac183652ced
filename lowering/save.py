"""Writes a program as a folder: ops, weights, sample, generated module, hashes."""

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from lowering.codegen import generate
from lowering.ir import Program, to_json
from lowering.runtime.folder import MANIFEST, MANIFEST_SCHEMA, PROGRAM, SAMPLE, WEIGHTS, Sample

MODULE = "model.py"
STORED = {"bfloat16": ml_dtypes.bfloat16, "bfloat8_b": ml_dtypes.bfloat16}
# golden values of single ops are left out of larger samples
MAX_GOLDEN_BYTES = 64 * 2**20


def save(
    program: Program,
    folder: str | Path,
    sample: Sample,
    *,
    golden: Mapping[str, np.ndarray] | None = None,
    model: Mapping[str, Any] | None = None,
    tolerances: Mapping[str, Any] | None = None,
    together: Sequence[Program] = (),
) -> Path:
    """Write the program with a sample of what it takes and gives; returns the folder.

    The folder appears whole or not at all; an older program there is replaced, anything else in
    it is an error. `model`: what the program was made from, kept in the manifest. `together`:
    programs whose weights the file holds as well.
    """
    folder = Path(folder)
    require_own(folder, MANIFEST)
    with replacing_folder(folder) as scratch:
        (scratch / PROGRAM).write_text(json.dumps(to_json(program), indent=1))
        weights = [_stored_weights(each) for each in (program, *together)]
        save_file({k: v for each in weights for k, v in each.items()}, scratch / WEIGHTS)
        write_tensors(_tensors(sample, golden or {}), scratch / SAMPLE)
        (scratch / MODULE).write_text(generate(program))
        manifest = _manifest(program, scratch, model or {}, tolerances or {})
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return folder


def require_own(folder: Path, head: str) -> None:
    """ValueError for a folder that holds files but not `head`, which a lowered program has."""
    if folder.exists() and any(folder.iterdir()) and not (folder / head).is_file():
        raise ValueError(
            f"{folder} holds files but no lowered program ({head} is missing); choose another"
            " folder"
        )


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _stored_weights(program: Program) -> dict[str, np.ndarray]:
    """Weights in their own width; block floats are held as bfloat16, which represents them."""
    return {
        value.name: np.ascontiguousarray(
            program.arrays[value.name].astype(STORED.get(value.dtype, value.dtype))
        )
        for value in program.weights
    }


def _tensors(sample: Sample, golden: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {f"input.{name}": array for name, array in sample.inputs.items()}
    tensors |= {f"output.{index}": np.asarray(a) for index, a in enumerate(sample.outputs)}
    tensors |= {f"before.{name}": array for name, array in sample.before.items()}
    tensors |= {f"after.{name}": array for name, array in sample.after.items()}
    if sum(array.nbytes for array in golden.values()) <= MAX_GOLDEN_BYTES:
        tensors |= {f"op.{name}": array for name, array in golden.items()}
    return tensors


def write_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """A safetensors file that `lowering.runtime.folder.read_tensors` reads."""
    save_file({name: _plain(array) for name, array in tensors.items()}, path)


def _plain(array: np.ndarray) -> np.ndarray:
    """float32 or int32, contiguous: what every reader of the folder understands."""
    array = np.asarray(array)
    kind = np.int32 if array.dtype.kind in "iu" else np.float32
    return np.ascontiguousarray(array.astype(kind)).reshape(array.shape)  # it makes no rank 0


def _manifest(program: Program, folder: Path, model, tolerances) -> dict[str, Any]:
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    return {
        "schema": MANIFEST_SCHEMA,
        "name": program.name,
        "policy": program.policy,
        "arch": program.arch,
        "model": dict(model),
        "tolerances": dict(tolerances),
        "versions": {name: importlib.metadata.version(name) for name in ("moejax", "jax", "flax")},
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
