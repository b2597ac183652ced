"""Evaluate a trained run on all windows: scores, a row a column, use of the experts.

moejax eval runs/mole_etth1 --plots
moejax eval runs/mole_csv --csv next_year.csv
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from train.evaluate import Evaluation

HELP = "evaluate a trained run, with plots if wanted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="folder of `moejax train`")
    parser.add_argument("--part", choices=("train", "val", "test"), default="test")
    parser.add_argument("--csv", default="", metavar="FILE", help="score all of another CSV")
    parser.add_argument("--plots", action="store_true", help="draw forecasts, experts, curves")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from train.api import load_run
    from train.evaluate import evaluate, save_evaluation

    console = Console()
    loaded = load_run(args.workdir)
    for note in loaded.dataset.series.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    evaluation = evaluate(loaded, args.part, args.csv)
    _print(evaluation, console)
    outputs = [save_evaluation(loaded, evaluation)]
    if args.plots:
        from train.plots import save_plots

        outputs += save_plots(loaded, evaluation)
    console.print("Written: " + ", ".join(map(str, outputs)), soft_wrap=True)
    console.print(
        f"Next: moejax lower {args.workdir} --out {args.workdir}/program --check mock",
        soft_wrap=True,
    )
    return 0


def _print(evaluation: "Evaluation", console: "Console") -> None:
    from rich.table import Table

    names = list(evaluation.scores)
    table = Table(title=f"{evaluation.part}, {evaluation.num_windows} windows")
    table.add_column("column")
    for name in names:
        table.add_column(name, justify="right")
    for column, scores in evaluation.channels.items():
        table.add_row(column, *(f"{scores[name]:.4f}" for name in names))
    table.add_section()
    table.add_row("all", *(f"{evaluation.scores[name]:.4f}" for name in names))
    console.print(table)
    if evaluation.usage:
        shares = "  ".join(f"{share:.1%}" for share in evaluation.usage["mean"])
        console.print(
            f"experts' shares: {shares}   balance {evaluation.usage['balance']:.3f}   "
            f"specialisation {evaluation.usage['specialisation']:.3f}",
            highlight=False,
        )
