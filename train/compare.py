"""Two recipes side by side: both are trained, and what each reached is written down."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from train import lm_figures, recipes
from train.api import train_recipe
from train.config import keys, override
from train.figures import png
from train.workdir import Workdir, dump, write_text

TIMES = ("train_seconds", "wall_seconds", "cpu_seconds")


def train_beside(
    recipe: str,
    other: str,
    folder: Path,
    settings: Iterable[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Train `recipe` in a folder and `other` in its subfolder of that name, then compare them.

    A setting holds for each that has its key. Writes comparison.json and plots/comparison.png into
    the folder. ValueError if the recipes are the same, of different systems, or of different data.
    """
    console = console or Console()
    settings = tuple(settings)
    if recipe == other:
        raise ValueError(f"{recipe} is the same recipe twice; name another one to compare it with")
    if recipes.system(recipe) is not recipes.system(other):
        raise ValueError(
            f"{recipe} and {other} are of different kinds; their scores do not compare"
        )
    known = set(keys(recipes.build(other)))
    shared = tuple(one for one in settings if one.partition("=")[0].strip() in known)
    one = override(recipes.build(recipe), settings)
    two = override(recipes.build(other), shared)
    if one.data != two.data:
        raise ValueError(f"{recipe} and {other} read different data; their scores do not compare")
    places = {recipe: folder, other: folder / other}
    for name, place in places.items():
        console.print(f"[{name}]", markup=False, highlight=False)
        train_recipe(name, place, settings if name == recipe else shared, console)
    found = compare(places, recipes.system(recipe).WATCHED)
    write_text(folder / "comparison.json", dump(found) + "\n")
    return found


def compare(places: dict[str, Path], watched: str) -> dict[str, Any]:
    """What finished runs reached: scores, parameters of the files, times; draws their curves."""
    lines = {name: Workdir(place).read_metrics() for name, place in places.items()}
    rows = {}
    for name, found in lines.items():
        final = found[-1]
        keys = ("parameters", f"val_{watched}", f"test_{watched}", "steps", "best_epoch", *TIMES)
        rows[name] = {key: final[key] for key in keys}
    best = min(rows, key=lambda name: rows[name][f"test_{watched}"])
    history = {name: [line for line in found if "epoch" in line] for name, found in lines.items()}
    folder = next(iter(places.values())) / "plots"
    folder.mkdir(exist_ok=True)
    figure = lm_figures.comparison(history, watched)
    (folder / "comparison.png").write_bytes(png(figure))
    return {"watched": watched, "runs": rows, "better": best}
