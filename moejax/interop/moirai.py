"""MOIRAI-MoE checkpoints in the published layout: config.json and model.safetensors.

Published matrices are [out, in], ours [in, out]; published experts have a tensor each, ours are
stacked; the published centroids of all layers are one tensor, ours lie with their layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moejax.interop.checkpoint import DTYPES, Checkpoint, Stored
from moejax.interop.hub import model_folder
from moejax.interop.lm.load import read_fields
from moejax.interop.lm.save import write_json, write_shards
from moejax.interop.moirai_config import read_config, write_config
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, empty_tokens

CENTROID = "encoder.centroid"
_LAYER_NAMES = {
    "attention_norm/scale": "norm1.weight",
    "ffn_norm/scale": "norm2.weight",
    "attention/query": "self_attn.q_proj.weight",
    "attention/key": "self_attn.k_proj.weight",
    "attention/value": "self_attn.v_proj.weight",
    "attention/output": "self_attn.out_proj.weight",
    "attention/query_norm/scale": "self_attn.q_norm.weight",
    "attention/key_norm/scale": "self_attn.k_norm.weight",
    "attention/variate_bias": "self_attn.var_attn_bias.emb.weight",
    # of our own: a learned router, shared experts
    "moe/router_kernel": "ffn.router.weight",
    "moe/shared/up": "ffn.shared.fc1.weight",
    "moe/shared/gate": "ffn.shared.fc_gate.weight",
    "moe/shared/down": "ffn.shared.fc2.weight",
}
_EXPERT_NAMES = {"up": "fc1", "gate": "fc_gate", "down": "fc2"}
# matrices that are published as they are
_PLAIN = ("attention/variate_bias", "moe/centroids")


@dataclass(frozen=True)
class Source:
    """Where an array of ours is published: in one tensor, in one a leading index (`each`), or as
    one row of the tensor (`row`).
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool
    each: bool = False
    row: int | None = None

    def tensor_shape(self, num_rows: int) -> tuple[int, ...]:
        """The shape of each tensor; `num_rows`: of the one that holds rows."""
        shape = self.shape[1:] if self.each else self.shape
        if self.transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
        return shape if self.row is None else (num_rows, *shape)


def load_moirai_moe(
    source: str | Path, *, revision: str | None = None
) -> tuple[MoiraiMoEConfig, dict[str, Any]]:
    """Config and variables of a checkpoint: a folder, or a hub id (see hub.py).

    Parameters are float32. Centroids stay numpy arrays of the stored dtype, float64 in published
    checkpoints, so that saving loses nothing; the model uses them in float32. ValueError lists
    tensors that are missing, unknown, of another shape or kind, or not finite.
    """
    folder = model_folder(source, revision=revision)
    config = read_config(read_fields(folder))
    checkpoint = Checkpoint(folder)
    wanted = sources(config)
    _check_tensors(config, checkpoint)
    broken: set[str] = set()
    flat = {path: _array(one, checkpoint, broken) for path, one in wanted.items()}
    checkpoint.require_finite(broken)
    return config, unflatten_dict(flat, sep="/")


def save_moirai_moe(
    config: MoiraiMoEConfig, variables: Mapping[str, Any], folder: str | Path
) -> None:
    """Write config.json and model.safetensors as `load_moirai_moe` and the published code read
    them; what the folder holds of a model is replaced.

    Routing other than the published one goes into a field of our own, which the published code
    does not know. ValueError if the variables are not the config's.
    """
    leaves: dict[str, Any] = flatten_dict(dict(variables), sep="/")
    flat = {path: leaf for path, leaf in leaves.items() if path.startswith(_COLLECTIONS)}
    wanted = sources(config)
    problems = [f"{path} is missing" for path in wanted.keys() - flat.keys()]
    problems += [f"{path} is unknown" for path in flat.keys() - wanted.keys()]
    problems += [
        f"{path} has shape {flat[path].shape}, the config needs {one.shape}"
        for path, one in wanted.items()
        if path in flat and flat[path].shape != one.shape
    ]
    if problems:
        raise ValueError(f"the variables do not fit the config: {', '.join(sorted(problems))}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(iter(published_tensors(config, flat).items()), folder, 1 << 62)
    write_json(folder / "config.json", write_config(config))


def published_tensors(config: MoiraiMoEConfig, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Published names and tensors of arrays by path (params/..., router_state/...)."""
    tensors: dict[str, np.ndarray] = {}
    centroids = []
    for path, source in sources(config).items():
        array = np.asarray(jax.device_get(flat[path]))
        array = array.swapaxes(-1, -2) if source.transposed else array
        if source.row is not None:
            centroids.append(array.astype(np.float64))
        elif source.each:
            tensors |= zip(source.names, map(np.ascontiguousarray, array), strict=True)
        else:
            tensors[source.names[0]] = np.ascontiguousarray(array)
    if centroids:
        tensors[CENTROID] = np.stack(centroids)
    return tensors


_COLLECTIONS = ("params/", "router_state/")


@lru_cache(maxsize=4)
def sources(config: MoiraiMoEConfig) -> dict[str, Source]:
    """The source of each of the model's arrays, by path."""
    variables = jax.eval_shape(MoiraiMoE(config).init, jax.random.key(0), empty_tokens(config))
    leaves: dict[str, Any] = flatten_dict(dict(variables), sep="/")
    return {
        path: _source(path, leaf.shape)
        for path, leaf in leaves.items()
        if path.startswith(_COLLECTIONS)
    }


def _source(path: str, shape: tuple[int, ...]) -> Source:
    collection, _, rest = path.partition("/")
    module, _, inner = rest.partition("/")
    if not module.startswith("layers_"):
        return Source((_outer_name(module, inner),), shape, inner.endswith("kernel"))
    layer = module.removeprefix("layers_")
    if collection == "router_state":
        return Source((CENTROID,), shape, False, row=int(layer))
    prefix = f"encoder.layers.{layer}"
    if inner.startswith("moe/experts/"):
        name = _EXPERT_NAMES[inner.rsplit("/", 1)[1]]
        names = tuple(f"{prefix}.ffn.experts.{e}.{name}.weight" for e in range(shape[0]))
        return Source(names, shape, True, each=True)
    matrix = len(shape) > 1 and inner not in _PLAIN
    return Source((f"{prefix}.{_LAYER_NAMES[inner]}",), shape, matrix)


def _outer_name(module: str, inner: str) -> str:
    """The published name of an array outside of the layers."""
    if module == "final_norm":
        return "encoder.norm.weight"
    argument, _, kind = inner.rpartition("_")
    kind = "weight" if kind == "kernel" else "bias"
    return f"param_proj.proj.{argument}.{kind}" if module == "head" else f"{module}.{kind}"


def _check_tensors(config: MoiraiMoEConfig, checkpoint: Checkpoint) -> None:
    checkpoint.require(
        {
            name: source.tensor_shape(config.num_layers)
            for source in sources(config).values()
            for name in source.names
        }
    )


def _array(source: Source, checkpoint: Checkpoint, broken: set[str]) -> Any:
    """An array of ours from its tensors; names of those that are not finite are added."""
    if source.row is not None:
        stored = _mapped(checkpoint.tensors[CENTROID])[source.row]
        if not np.isfinite(stored).all():
            broken.add(CENTROID)
        return np.array(stored)
    out = np.empty(source.shape, np.float32)
    for place, name in enumerate(source.names):
        stored = _mapped(checkpoint.tensors[name])
        target = out[place] if source.each else out
        target[...] = stored.swapaxes(-1, -2) if source.transposed else stored
        if not np.isfinite(target).all():
            broken.add(name)
    return jax.device_put(out)


def _mapped(stored: Stored) -> np.ndarray:
    return np.memmap(stored.path, DTYPES[stored.dtype], "r", stored.offset, stored.shape)
