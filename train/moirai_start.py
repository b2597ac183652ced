"""The model in a folder: a published checkpoint's, or the workdir of a run."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from moejax.interop.moirai import load_moirai_moe, save_moirai_moe
from moejax.models.moirai_moe import MoiraiMoEConfig
from train.checkpoint import CheckpointStore
from train.lm_task import model_variables
from train.moirai_task import bare_task
from train.optim import make_optimizer
from train.step import state_shapes
from train.workdir import Workdir


def is_workdir(folder: str | Path) -> bool:
    """Whether `moejax train` made the folder (both kinds hold a config.json)."""
    return (Path(folder) / "checkpoints").is_dir()


def load_model(source: str | Path) -> tuple[MoiraiMoEConfig, dict[str, Any]]:
    """Config and variables (float32) of a workdir, a checkpoint's folder, or a hub id.

    ValueError for what is neither, and for a workdir of another system.
    """
    if is_workdir(source):
        config, variables = _of_run(source)
    else:
        config, variables = load_moirai_moe(source)
    return config, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)


def model_config(source: str | Path) -> MoiraiMoEConfig:
    """The config alone."""
    if is_workdir(source):
        model = Workdir(source).read_config().model
        _require_moirai(source, model)
        return model
    return load_moirai_moe(source)[0]


def save_model(workdir: str | Path, folder: str | Path) -> None:
    """Write a run's best weights as a checkpoint folder: see `save_moirai_moe`."""
    save_moirai_moe(*_of_run(workdir), folder)


def _of_run(workdir: str | Path) -> tuple[MoiraiMoEConfig, dict[str, Any]]:
    """Of a run's best parameters; its data need not be there."""
    place = Workdir(workdir)
    config: Any = place.read_config()
    _require_moirai(workdir, config.model)
    optimizer = make_optimizer(config.optim, steps_per_epoch=1, epochs=1)
    state = state_shapes(bare_task(config.model, config.training), optimizer)
    found = CheckpointStore(place.checkpoints).load_latest({"state": state, "best": state.params})
    if found is None:
        raise ValueError(f"{place.path} has no usable checkpoint; run `moejax train` first")
    return config.model, model_variables(found.arrays["best"])


def _require_moirai(source: str | Path, model: Any) -> None:
    if not isinstance(model, MoiraiMoEConfig):
        raise ValueError(
            f"{source} holds a {type(model).__name__.removesuffix('Config')}, not a MOIRAI-MoE;"
            " give a workdir of a moirai recipe or a folder of its checkpoint"
        )
