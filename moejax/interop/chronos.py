"""Chronos-T5, T5, Chronos-Bolt and Chronos-MoE checkpoints: config.json and safetensors.

A mixture started from a dense checkpoint forecasts as that does; see `warm_start`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moejax.interop.checkpoint import DTYPES, Checkpoint
from moejax.interop.chronos_config import Config, read_config, read_t5, write_config, write_t5
from moejax.interop.chronos_names import Name, plain_name, published_name, second_name
from moejax.interop.hub import model_folder
from moejax.interop.lm.load import read_fields
from moejax.interop.lm.save import write_json, write_shards
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos2 import Chronos2, Chronos2Config
from moejax.models.chronos_bolt import BoltConfig, ChronosBolt
from moejax.models.chronos_config import ChronosConfig
from moejax.models.chronos_moe import shared_layers
from moejax.models.t5 import T5, T5Config

Variables = dict[str, Any]
# copies of the shared table, and a head that is the table too; some files have them
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@dataclass(frozen=True)
class Source:
    """Where an array is published: one tensor, or one for each expert."""

    names: tuple[Name, ...]
    shape: tuple[int, ...]
    each: bool

    def tensor_shape(self, name: Name) -> tuple[int, ...]:
        """The shape of such a tensor."""
        shape = self.shape[1:] if self.each else self.shape
        shape = shape[::-1] if name.transposed else shape
        return shape if name.part is None else (3 * shape[0], *shape[1:])


def load_chronos(
    source: str | Path,
    *,
    chronos: ChronosConfig | None = None,
    dtype: str = "float32",
    revision: str | None = None,
) -> tuple[Config, Variables]:
    """Config and variables of a folder or a hub id. Parameters are float32; `dtype` is that of the
    activations.

    `chronos` makes a T5 without a chronos_config a Chronos model. ValueError lists tensors that are
    missing, unknown, of another shape or kind, or not finite.
    """
    folder = model_folder(source, revision=revision)
    found = read_fields(folder)
    checkpoint = Checkpoint(folder)
    decodes = any(name.startswith("model.decoder.") for name in checkpoint.tensors)
    if chronos is not None and "chronos_config" not in found:
        found = found | {"chronos_config": chronos.to_fields()}
    config = read_config(found, decodes, dtype)
    return config, _read(config, checkpoint)


def load_t5(
    source: str | Path, *, dtype: str = "float32", revision: str | None = None
) -> tuple[T5Config, Variables]:
    """Config and variables of a T5 without regard to forecasts; otherwise as `load_chronos`."""
    folder = model_folder(source, revision=revision)
    config = read_t5(read_fields(folder), dtype)
    return config, _read(config, Checkpoint(folder))


def save_chronos(
    config: Config | T5Config, variables: Mapping[str, Any], folder: str | Path
) -> None:
    """Write config.json and model.safetensors as `load_chronos`, and but for mixtures the published
    code, read them. ValueError if the variables are not the config's.
    """
    flat: dict[str, Any] = flatten_dict(dict(variables)["params"], sep="/")
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
    fields = write_t5(config) if isinstance(config, T5Config) else write_config(config)
    write_json(folder / "config.json", fields)


def published_tensors(config: Config | T5Config, flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Published names and tensors of parameters, or of their gradients, by path."""
    tensors: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for path, source in sources(config).items():
        array = np.asarray(jax.device_get(flat[path]))
        for index, name in enumerate(source.names):
            one = array[index] if source.each else array
            one = np.ascontiguousarray(one.T if name.transposed else one)
            if name.part is None:
                tensors[name.tensor] = one
            else:
                parts.setdefault(name.tensor, {})[name.part] = one
    for tensor, thirds in parts.items():
        tensors[tensor] = np.concatenate([thirds[part] for part in range(3)])
    return tensors


@lru_cache(maxsize=8)
def sources(config: Config | T5Config) -> dict[str, Source]:
    """The source of each parameter, by path."""
    variables = jax.eval_shape(lambda: initial(config, jax.random.key(0)))
    leaves: dict[str, Any] = flatten_dict(variables["params"], sep="/")
    return {path: _source(config, path, leaf.shape) for path, leaf in leaves.items()}


def initial(config: Config | T5Config, key: jax.Array) -> Variables:
    """Fresh variables."""
    if isinstance(config, BoltConfig):
        return dict(ChronosBolt(config).init(key, jnp.zeros((1, config.input_patch_size))))
    if isinstance(config, Chronos2Config):
        return dict(Chronos2(config).init(key, jnp.zeros((1, config.input_patch_size))))
    module = T5(config) if isinstance(config, T5Config) else config.module()
    ids = jnp.zeros((1, 1), jnp.int32)
    return dict(module.init(key, ids, jnp.ones((1, 1), bool), ids))


def _source(config: Config | T5Config, path: str, shape: tuple[int, ...]) -> Source:
    t5 = config if isinstance(config, T5Config) else config.t5
    gated = t5.feed_forward == "gated_gelu"
    if isinstance(config, Chronos2Config):
        return Source((second_name(path, len(shape)),), shape, False)
    if not (isinstance(config, ChronosModelConfig) and config.chronos.use_moe):
        return Source((published_name(path, len(shape), gated=gated),), shape, False)
    inner = path.removeprefix("experts/")
    if inner == path:
        name = published_name(path, len(shape), gated=gated)
        prefix = "" if path.startswith("router/") else "model."
        return Source((replace(name, tensor=prefix + name.tensor),), shape, False)
    if inner.startswith("encoder/layers_"):
        name = plain_name(inner, len(shape) - 1)
    else:
        first = shared_layers(t5, config.chronos)
        name = published_name(inner, len(shape) - 1, gated=gated, first_tail=first)
    names = tuple(replace(name, tensor=f"experts.{e}.{name.tensor}") for e in range(shape[0]))
    return Source(names, shape, True)


def _read(config: Config | T5Config, checkpoint: Checkpoint) -> Variables:
    wanted = sources(config)
    _check_tensors(config, checkpoint)
    flat, broken = {}, set()
    for path, source in wanted.items():
        arrays = [_array(checkpoint, name) for name in source.names]
        flat[path] = jnp.asarray(np.stack(arrays) if source.each else arrays[0])
        broken |= {
            name.tensor
            for name, array in zip(source.names, arrays, strict=True)
            if not np.isfinite(array).all()
        }
    checkpoint.require_finite(broken)
    return {"params": unflatten_dict(flat, sep="/")}


def _array(checkpoint: Checkpoint, name: Name) -> np.ndarray:
    stored = checkpoint.tensors[name.tensor]
    array = np.memmap(stored.path, DTYPES[stored.dtype], "r", stored.offset, stored.shape)
    if name.part is not None:
        array = np.split(array, 3)[name.part]
    return np.array(array.T if name.transposed else array, np.float32)


def _check_tensors(config: Config | T5Config, checkpoint: Checkpoint) -> None:
    shapes = {
        name.tensor: source.tensor_shape(name)
        for source in sources(config).values()
        for name in source.names
    }
    checkpoint.require(shapes, lambda name: _is_copy(name, shapes.keys()))


def _is_copy(name: str, wanted: Any) -> bool:
    """Whether a tensor repeats the shared table, which a tied model needs once."""
    name = name.removeprefix("model.")
    return name in _COPIES or (name == "lm_head.weight" and name not in wanted)
