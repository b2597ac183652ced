"""Load a published checkpoint folder: config.json and safetensors -> LMConfig and variables."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from moejax.interop.checkpoint import DTYPES, Checkpoint
from moejax.interop.lm.dialects import Published
from moejax.interop.lm.families import family_of, read_config
from moejax.interop.lm.fit import fit
from moejax.interop.lm.reader import Progress, Reader, Sharding
from moejax.models.moe_lm import LMConfig


def load_lm(
    folder: str | Path,
    *,
    dtype: Any = None,
    sharding: Sharding | Callable[[str, tuple[int, ...]], Sharding | None] | None = None,
    progress: Progress | None = None,
) -> tuple[LMConfig, dict[str, Any]]:
    """The model of a folder in the published layout: its config, and variables for CausalLM.

    dtype: of the parameters ("float32", "bfloat16", "float16") and, but for float16, of what is
    computed with them; None keeps the stored one (bfloat16 for float8 weights). The correction
    bias is float32 always. sharding: of every array, or a function of its path and shape; each
    device's part is read on its own. progress(bytes done, of all) is called as reading goes on.
    Holds a few MiB beside the arrays. ValueError lists what in the folder does not fit, by name.
    """
    folder = Path(folder)
    fields = read_fields(folder)
    config = read_config(fields)
    if dtype is not None:
        dtype = _float(dtype)
        computed = "bfloat16" if dtype == jnp.bfloat16 else "float32"
        config = replace(config, dtype=computed)
    checkpoint = Checkpoint(folder, fields.get("quantization_config"))
    extra = Published(fields, {}).size("num_extra_layers", 0)
    chosen = fit(config, family_of(fields), checkpoint, extra)
    reader = Reader(checkpoint, chosen.values(), progress)
    flat = {}
    for path, source in chosen.items():
        where = sharding(path, source.shape) if callable(sharding) else sharding
        stored = DTYPES[checkpoint.tensors[source.layout.names[0]].dtype]
        flat[path] = reader.array(source, _target(path, stored, dtype), where)
    checkpoint.require_finite(reader.broken)
    return config, unflatten_dict(flat, sep="/")


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of config.json; ValueError if there is none that can be read."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} needs a config.json, as published models have it: {error}"
        ) from error
    if not isinstance(fields, dict):
        raise ValueError(f"{folder / 'config.json'} must hold an object, not {type(fields)}")
    return fields


def _float(dtype: Any) -> np.dtype:
    found = jnp.dtype(dtype)
    if found not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype is {found}; choose float32, bfloat16 or float16")
    return found


def _target(path: str, stored: np.dtype, wanted: np.dtype | None) -> np.dtype:
    if path.startswith("router_state/"):
        return np.dtype(np.float32)
    if wanted is not None:
        return wanted
    return {8: np.dtype(np.float32), 1: jnp.dtype(jnp.bfloat16)}.get(stored.itemsize, stored)
