"""Save a model as a folder in the published layout: config.json and safetensors."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from moejax.interop.checkpoint import INDEX
from moejax.interop.lm.fit import sources, variable_shapes
from moejax.interop.lm.publish import publish_config
from moejax.models.moe_lm import LMConfig

SHARD_BYTES = 5 << 30


def save_lm(
    config: LMConfig,
    variables: Mapping[str, Any],
    folder: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and weights that transformers, and `load_lm`, read as the same model.

    One file, or shards of at most `shard_bytes` with an index; parameters keep their dtypes. A
    model that the folder holds is replaced. ValueError if no published architecture is this model,
    or if the variables are not the config's.
    """
    family, fields = publish_config(config)
    leaves: dict[str, Any] = flatten_dict(dict(variables), sep="/")
    flat = {p: leaf for p, leaf in leaves.items() if p.startswith(("params/", "router_state/"))}
    _check(config, flat)
    fields["dtype"] = np.dtype(flat["params/embedding"].dtype).name
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("model-*-of-*.safetensors"), folder / INDEX):
        old.unlink(missing_ok=True)
    write_shards(published_tensors(config, family, flat), folder, shard_bytes)
    write_json(folder / "config.json", fields)


def published_tensors(
    config: LMConfig, family: str, flat: Mapping[str, Any], *, fused: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Published names and tensors of arrays by path: parameters, or their gradients.

    `fused`: as transformers holds them in memory, all experts of a layer in one tensor.
    """
    halves: dict[str, np.ndarray] = {}
    for path, ways in sources(config, family).items():
        source = ways[-1 if fused else 0]
        layout = source.layout
        array = np.asarray(jax.device_get(flat[path]))
        array = array.swapaxes(-1, -2) if source.transposed else array
        if layout.each:
            yield from zip(layout.names, map(np.ascontiguousarray, array), strict=True)
        elif layout.half is None:
            yield layout.names[0], np.ascontiguousarray(array)
        elif layout.names[0] in halves:
            other = halves.pop(layout.names[0])
            pair = (other, array) if layout.half else (array, other)
            yield layout.names[0], np.ascontiguousarray(np.concatenate(pair, axis=1))
        else:
            halves[layout.names[0]] = array


def _check(config: LMConfig, flat: Mapping[str, Any]) -> None:
    shapes = variable_shapes(config)
    problems = [f"{path} is missing" for path in shapes.keys() - flat.keys()]
    problems += [f"{path} is unknown" for path in flat.keys() - shapes.keys()]
    problems += [
        f"{path} has shape {flat[path].shape}, the config needs {shape}"
        for path, shape in shapes.items()
        if path in flat and flat[path].shape != shape
    ]
    if problems:
        raise ValueError(f"the variables do not fit the config: {', '.join(sorted(problems))}")


def write_shards(tensors: Iterator[tuple[str, np.ndarray]], folder: Path, shard_bytes: int) -> None:
    """Fill files in turn; the last decides how many there are, and so what they are called."""
    parts: list[Path] = []
    weight_map: dict[str, int] = {}
    total = size = 0
    shard: dict[str, np.ndarray] = {}

    def flush() -> None:
        parts.append(folder / f"{len(parts) + 1}.part")
        save_file(shard, parts[-1], metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, len(parts)))
        shard.clear()

    for name, array in tensors:
        if shard and size + array.nbytes > shard_bytes:
            flush()
            size = 0
        shard[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(parts) == 1:
        os.replace(parts[0], folder / "model.safetensors")
        return
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        os.replace(part, folder / name)
    where = {name: names[number - 1] for name, number in weight_map.items()}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
