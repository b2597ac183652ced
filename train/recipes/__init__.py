"""Recipes: functions that return the full config of a run. One module a system.

A system's module lists its functions in RECIPES, names the score that decides in WATCHED, and has
`load(config) -> data with source, notes and describe()`, `resolve(config, data) -> Config`,
`misfit(config, data)`, `make_task(config, data) -> Task`, `make_model(config) -> Linen module` and
`result(final) -> str`; a forecaster of any series also FORECASTER, its name, and
`make_forecaster(config, params)`.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from train.config import Config
from train.recipes import chronos, moe_lm, moirai_moe, mole
from train.tables import nearest

SYSTEMS: tuple[ModuleType, ...] = (mole, moe_lm, moirai_moe, chronos)
RECIPES: dict[str, Callable[[], Config]] = {
    recipe.__name__: recipe for module in SYSTEMS for recipe in module.RECIPES
}


def build(name: str) -> Config:
    """The config of a recipe; ValueError with the nearest match for an unknown name."""
    if name not in RECIPES:
        raise ValueError(
            f"unknown recipe {name!r}.{nearest(name, RECIPES)} Recipes: {', '.join(RECIPES)}"
        )
    return RECIPES[name]()


def system(name: str) -> ModuleType:
    """The module of the system that a recipe belongs to."""
    build(name)
    return next(module for module in SYSTEMS if RECIPES[name] in module.RECIPES)


def summary(name: str) -> str:
    """The first line of a recipe's docstring."""
    return (RECIPES[name].__doc__ or "").strip().splitlines()[0]


def eval_command(name: str, workdir: Path | str) -> str:
    """What evaluates a run of a recipe, with plots where its system draws them there."""
    plots = "" if hasattr(system(name), "FORECASTER") else " --plots"
    return f"moejax eval {workdir}{plots}"
