"""Evaluate a trained run on all of a part: scores, use of the experts, pictures.

moejax eval runs/mole_etth1 --plots
moejax eval runs/mole_csv --csv next_year.csv
moejax eval runs/lm_small --part val --plots
moejax eval runs/lm_small --text 'src/**/*.py'
moejax eval runs/moirai_pretrain --save moirai
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from train.api import LoadedRun
    from train.evaluate import Evaluation

HELP = "evaluate a trained run, with plots if wanted"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="folder of `moejax train`")
    parser.add_argument("--part", choices=("train", "val", "test"), default="test")
    parser.add_argument("--csv", default="", metavar="FILE", help="score all of another CSV")
    parser.add_argument("--text", default="", metavar="FILE", help="score all of another text")
    parser.add_argument("--save", default="", metavar="DIR", help="write the model there")
    parser.add_argument("--plots", action="store_true", help="draw forecasts, experts, curves")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from train.api import load_run
    from train.recipes import chronos, moe_lm, moirai_moe

    console = Console()
    loaded = load_run(args.workdir)
    for note in loaded.dataset.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    show = {moe_lm: _text, moirai_moe: _forecasts, chronos: _forecasts}.get(loaded.system, _series)
    if args.save and show is not _forecasts:
        raise ValueError(f"--save writes a forecaster of any series; {args.workdir} holds none")
    outputs, following = show(loaded, args, console)
    console.print("Written: " + ", ".join(map(str, outputs)), soft_wrap=True)
    console.print(f"Next: {following}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _series(
    loaded: "LoadedRun", args: argparse.Namespace, console: "Console"
) -> tuple[list[Path], str]:
    from train.evaluate import evaluate, save_evaluation

    if args.text:
        raise ValueError(f"{args.workdir} forecasts series; score another one with --csv FILE")
    evaluation = evaluate(loaded, args.part, args.csv)
    _print(evaluation, console)
    outputs = [save_evaluation(loaded, evaluation)]
    if args.plots:
        from train.plots import save_plots

        outputs += save_plots(loaded, evaluation)
    return outputs, f"moejax lower {args.workdir} --out {args.workdir}/program --check mock"


def _text(
    loaded: "LoadedRun", args: argparse.Namespace, console: "Console"
) -> tuple[list[Path], str]:
    from train import lm_evaluate

    if args.csv:
        raise ValueError(f"{args.workdir} is a language model; score other text with --text FILE")
    found = lm_evaluate.evaluate(loaded, args.part, args.text)
    scores = found.scores
    console.print(
        f"{found.part}, {found.num_bytes} bytes in {found.num_rows} rows: "
        f"{scores['bits_per_byte']:.4f} bits per byte, next byte right {scores['accuracy']:.1%}",
        highlight=False,
        soft_wrap=True,
    )
    if found.usage:
        columns = (found.usage[name] for name in ("layers", "share", "load_entropy"))
        for layer, shares, entropy in zip(*columns, strict=True):
            text = " ".join(f"{share:.1%}" for share in shares)
            console.print(
                f"{layer}: experts' shares {text}; balance {entropy:.3f}", highlight=False
            )
    outputs = [lm_evaluate.save_evaluation(loaded, found)]
    if args.plots:
        outputs += lm_evaluate.save_plots(loaded, found)
    return outputs, f'moejax generate --model {args.workdir} --prompt "def "'


def _forecasts(
    loaded: "LoadedRun", args: argparse.Namespace, console: "Console"
) -> tuple[list[Path], str]:
    from train import chronos_start, moirai_start
    from train.forecasts import evaluate
    from train.forecasts.score import table
    from train.recipes import chronos

    name, start = "moirai-moe", moirai_start
    if loaded.system is chronos:
        name, start = "chronos", chronos_start
    following = f"moejax forecast {name} --checkpoint {args.workdir} --csv FILE --out DIR"

    if args.csv or args.text or args.plots:
        raise ValueError(
            f"{args.workdir} is scored on its own data; forecasts and plots of other series:"
            f" {following}"
        )
    outputs = []
    if args.save:
        start.save_model(args.workdir, args.save)
        outputs.append(Path(args.save))
    found = evaluate.evaluate(loaded, args.part)
    table(found.scores, console, f"{found.part}, {found.num_series} series")
    console.print(f"{loaded.task.watched}: {found.loss:.4f} nats", highlight=False)
    for layer, shares in enumerate(found.usage.get("expert_load", [])):
        text = " ".join(f"{share:.1%}" for share in shares)
        console.print(f"layer {layer}: experts' shares {text}", highlight=False)
    for layer, expert in found.usage.get("dead_experts", []):
        console.print(f"layer {layer}: expert {expert} hardly works", highlight=False)
    outputs.insert(0, evaluate.save_evaluation(loaded, found))
    return outputs, following


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
