"""Train a recipe, or continue it.

Run the same command again after a crash, a kill or a full disk: it continues from the last
checkpoint and ends with the same parameters as an uninterrupted run. Without RECIPE, the recipes
are listed.

  moejax train mole_debug
  moejax train mole_etth1 --set optim.learning_rate=2e-3 loop.seed=1 --workdir runs/mine
  moejax train mole_csv --set data.csv=mine.csv data.mode=MS data.target=load
  moejax train lm_text --set "data.text=notes/**/*.md"
  moejax train lm_small --beside lm_small_dense
"""

import argparse
from pathlib import Path

HELP = "train a recipe, or continue it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="see the list without it")
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run (runs/RECIPE)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="change values of the config; --show lists them",
    )
    parser.add_argument(
        "--beside", metavar="RECIPE", help="train this one too, into a subfolder, and compare"
    )
    parser.add_argument("--show", action="store_true", help="print the config and stop")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from train import recipes
    from train.config import override, to_json

    console = Console()
    if not args.recipe:
        for name in recipes.RECIPES:
            console.print(f"{name:16} {recipes.summary(name)}", highlight=False, soft_wrap=True)
        return 0
    config = override(recipes.build(args.recipe), args.settings)
    if args.show:
        print(to_json(config))
        return 0
    return _train(args, console)


def _train(args: argparse.Namespace, console) -> int:
    from train import recipes
    from train.api import train_recipe
    from train.workdir import Workdir

    folder = Path(args.workdir or Path("runs") / args.recipe)
    if args.beside:
        return _compare(args, folder, console)
    result = train_recipe(args.recipe, folder, args.settings, console)
    if result is None:
        console.print(f"{folder} holds a finished run of this config", soft_wrap=True)
    final = result.final if result else (Workdir(folder).final() or {})
    console.print(
        f"{recipes.system(args.recipe).result(final)}; "
        f"best epoch {final['best_epoch']} of {final['epochs']}",
        highlight=False,
    )
    if final["skipped_steps"]:
        console.print(f"{final['skipped_steps']} steps were skipped: numbers were not finite")
    console.print(f"Run: {folder} (metrics.jsonl, checkpoints/, config.json)", soft_wrap=True)
    console.print(f"Next: {recipes.eval_command(args.recipe, folder)}", soft_wrap=True)
    return 0


def _compare(args: argparse.Namespace, folder: Path, console) -> int:
    from rich.table import Table

    from train.compare import train_beside

    found = train_beside(args.recipe, args.beside, folder, args.settings, console)
    rows = found["runs"]
    table = Table(title=f"lower is better: {found['watched'].replace('_', ' ')}")
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for key in rows[args.recipe]:
        table.add_row(key.replace("_", " "), *(f"{row[key]:.6g}" for row in rows.values()))
    console.print(table)
    console.print(f"better on the test part: {found['better']}", highlight=False)
    console.print(
        f"Written: {folder / 'comparison.json'}, {folder / 'plots/comparison.png'}", soft_wrap=True
    )
    return 0
