"""The commands as plain functions: train a recipe, load a finished run, evaluate it."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from train import recipes
from train.checkpoint import CheckpointStore
from train.config import Config, config_hash, override
from train.loop import Result, train
from train.optim import make_optimizer
from train.step import state_shapes
from train.task import Task
from train.workdir import Workdir


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A trained run: its config, system module, data, task and best parameters."""

    workdir: Workdir
    config: Config
    system: ModuleType
    dataset: Any
    task: Task
    params: Any

    @property
    def model(self) -> Any:
        """The Linen module of the run."""
        return self.system.make_model(self.config)


def train_recipe(
    recipe: str,
    workdir: Path | str = "",
    settings: Iterable[str] = (),
    console: Console | None = None,
) -> Result | None:
    """Train a recipe with settings `a.b=value` in a workdir (default runs/RECIPE), resuming it.

    None when the run in the workdir is already finished. ValueError for bad input, TrainError when
    training cannot go on.
    """
    console = console or Console()
    config = override(recipes.build(recipe), settings)
    place = Workdir(workdir or Path("runs") / recipe)
    module = recipes.system(recipe)
    dataset = module.load(config)
    config = module.resolve(config, dataset)
    for line in (dataset.describe(), *(f"note: {note}" for note in dataset.notes)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    with place.held():
        place.set_config(config)
        if place.final():
            return None
        task = module.make_task(config, dataset)
        return train(
            task,
            functools.partial(make_optimizer, config.optim),
            config.loop,
            place,
            {"config": config_hash(config)},
            console,
        )


def load_run(workdir: Path | str, console: Console | None = None) -> LoadedRun:
    """The best parameters of a run (finished or not), with all that is needed to use them.

    ValueError when the folder is no workdir, has no usable checkpoint, or the data has changed.
    """
    console = console or Console(stderr=True)
    place = Workdir(workdir)
    config = place.read_config()
    module = recipes.system(config.recipe)
    dataset = module.load(config)
    notes = "".join(f" Note: {note}." for note in dataset.notes)
    misfit = module.misfit(config, dataset)
    if misfit:
        raise ValueError(
            f"{misfit[0]}, but the model of {place.path} was trained on {misfit[1]}; restore the "
            "data, or train again in another --workdir." + notes
        )
    task = module.make_task(config, dataset)
    optimizer = make_optimizer(config.optim, steps_per_epoch=1, epochs=1)
    state = state_shapes(task, optimizer)
    store = CheckpointStore(place.checkpoints, say=console.print)
    checkpoint = store.load_latest({"state": state, "best": state.params})
    if checkpoint is None:
        raise ValueError(f"{place.path} has no usable checkpoint; run `moejax train` first")
    if checkpoint.host["identity"]["data"] != task.fingerprint:
        raise ValueError(
            f"{dataset.source} is not the data that {place.path} was trained "
            "on; restore it, or train again in another --workdir." + notes
        )
    return LoadedRun(
        workdir=place,
        config=config,
        system=module,
        dataset=dataset,
        task=task,
        params=checkpoint.arrays["best"],
    )
