"""The Chronos model in a folder: a published checkpoint's, or the workdir of a run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moejax.interop.chronos import load_chronos, save_chronos
from moejax.models.chronos import ChronosModelConfig
from train.checkpoint import CheckpointStore
from train.chronos_task import bare_task
from train.moirai_start import is_workdir
from train.optim import make_optimizer
from train.step import state_shapes
from train.workdir import Workdir


def load_any(source: str | Path) -> tuple[Any, dict[str, Any]]:
    """Config and variables of a workdir, or of a published folder or hub id of any kind."""
    return _of_run(source) if is_workdir(source) else load_chronos(source)


def load_model(source: str | Path) -> tuple[ChronosModelConfig, dict[str, Any]]:
    """The same in float32, of a T5 or a mixture; ValueError for another kind."""
    config, variables = load_any(source)
    config = _t5(source, config)
    return config, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)


def model_config(source: str | Path) -> ChronosModelConfig:
    """The config alone."""
    if is_workdir(source):
        return _t5(source, Workdir(source).read_config().model)
    return _t5(source, load_chronos(source)[0])


def save_model(workdir: str | Path, folder: str | Path) -> None:
    """Write a run's best weights as a checkpoint folder: see `save_chronos`."""
    save_chronos(*_of_run(workdir), folder)


def _of_run(workdir: str | Path) -> tuple[ChronosModelConfig, dict[str, Any]]:
    """Of a run's best parameters; its data need not be there."""
    place = Workdir(workdir)
    config: Any = place.read_config()
    model = _t5(workdir, config.model)
    optimizer = make_optimizer(config.optim, steps_per_epoch=1, epochs=1)
    state = state_shapes(bare_task(model, config.training), optimizer)
    found = CheckpointStore(place.checkpoints).load_latest({"state": state, "best": state.params})
    if found is None:
        raise ValueError(f"{place.path} has no usable checkpoint; run `moejax train` first")
    return model, {"params": found.arrays["best"]["params"]}


def _t5(source: str | Path, model: Any) -> ChronosModelConfig:
    if not isinstance(model, ChronosModelConfig):
        raise ValueError(
            f"{source} holds a {type(model).__name__.removesuffix('Config')}, not a Chronos T5 or"
            " mixture; give a workdir of a chronos recipe or a folder of such a checkpoint"
        )
    return model
