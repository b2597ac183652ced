"""Lower a trained run to a ttnn program: a folder with program, weights, code and report.

SOURCE is a workdir of `moejax train`, the folder of a published language model, MOIRAI-MoE or
Chronos, or module:function of your own that returns (function, params, inputs) with inputs a dict
of example arrays. A language model becomes two programs, prefill and decode, that share weights and
caches; a MOIRAI-MoE or Chronos-Bolt one program, another Chronos two, encode and decode, with which
`python -m lowering.runtime` forecasts.

  moejax lower runs/mole_etth1 --out runs/mole_etth1/program --check mock
  moejax lower moirai-moe-1.0-R-small --out program --context 512 --horizon 96 --batch 32
  moejax lower amazon/chronos-t5-tiny --out program --context 512 --samples 20
  moejax lower runs/lm_small --out program --prompt 64 --slots 256
  moejax lower runs/mole_etth1 --out pruned --prune 0.05
  moejax lower mymodel:example --out program --policy bfloat8_b --arch blackhole
"""

import argparse
from pathlib import Path
from typing import Any

HELP = "lower a trained run to a ttnn program"
ARCHS = ("wormhole_b0", "blackhole")
POLICIES = ("bfloat16", "float32", "bfloat8_b")
SIZES = {
    "batch": "sequences a run (32; of a language model, a MOIRAI-MoE or a Chronos 1)",
    "prompt": "longest prompt of a language model (up to 128)",
    "slots": "prompt and continuation together (twice the prompt)",
    "context": "steps of history that a MOIRAI-MoE (512) or a Chronos (all it can) sees",
    "samples": "samples of a context that a Chronos draws side by side (as the checkpoint has it)",
    "horizon": "steps that a MOIRAI-MoE forecasts (96)",
    "patch_size": "steps of a token, if it knows several (16)",
    "targets": "series that it forecasts together (1)",
    "known_ahead": "covariates whose future is known (0)",
    "past_only": "covariates of the past (0)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="workdir, or module:function")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the program")
    parser.add_argument("--arch", choices=ARCHS, default="wormhole_b0")
    parser.add_argument("--policy", choices=POLICIES, default="bfloat16", help="device dtypes")
    parser.add_argument(
        "--check",
        choices=("mock", "none"),
        default="auto",
        help="have ttnn's mock device accept every op (default: where ttnn is installed)",
    )
    for name, text in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    parser.add_argument(
        "--prune",
        type=float,
        metavar="WEIGHT",
        help="leave out experts whose weight stays under this on the validation windows",
    )


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from lowering.runtime.head import FORECASTER
    from train.lower import lower_source

    console = Console()
    with console.status("lowering"):
        reports = lower_source(
            args.source,
            args.out,
            arch=args.arch,
            policy=args.policy,
            check=args.check,
            prune=args.prune,
            **{name: getattr(args, name) for name in SIZES},
        )
    failed = [not _show(console, report) for report in reports.values()]
    code = "model.py, program.json, report.json"
    if len(reports) == 1:
        console.print(f"Program: {args.out} ({code})", soft_wrap=True)
    else:
        folders = " and ".join(reports)
        console.print(f"Programs: {args.out} ({folders}, each with {code})", soft_wrap=True)
    console.print(f"Next: moejax parity {args.out} --bisect", soft_wrap=True)
    if (Path(args.out) / FORECASTER).is_file():
        command = f"python -m lowering.runtime {args.out} --forecast series.csv --out forecast.csv"
        console.print(f"On a machine with a card: {command}", soft_wrap=True)
    return 1 if any(failed) else 0


def _show(console, report: dict[str, Any]) -> bool:
    """Print a report; whether the program is as it should be."""
    console.print(_table(report))
    if pruned := report["model"].get("pruned"):
        before, after = pruned["test_scores"]["mse"], pruned["test_scores_pruned"]["mse"]
        console.print(
            f"experts left out: {pruned['experts_left_out'] or 'none'}; "
            f"test mse {before:.4f} -> {after:.4f}",
            highlight=False,
        )
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False)
    for row in report["parity"]:
        worst = min(row["outputs"], key=lambda output: output["pcc"])
        console.print(
            f"{row['level']} {row['policy']} on {row['backend']}: "
            f"{'ok' if row['ok'] else 'FAILED'}, PCC {worst['pcc']:.6f}, "
            f"relative L2 {worst['relative_l2']:.2e}, max abs {worst['max_abs']:.2e}",
            highlight=False,
        )
    rejected = [error for chip in report["chips"].values() for error in chip["errors"]]
    for error in rejected:
        console.print(f"rejected: {error}", style="red", markup=False)
    return not rejected and all(row["ok"] for row in report["parity"])


def _table(report: dict[str, Any]):
    """A column a chip."""
    from rich.table import Table

    table = Table(title=f"{report['name']}, {report['policy']}, batch {report['batch']}")
    table.add_column("")
    for chip in report["chips"]:
        table.add_column(chip, justify="right")
    rows = {
        "device programs": "device_programs",
        "ttnn ops": "ttnn_ops",
        "layout conversions": "layout_conversions",
        "host ops": "host_ops",
        "peak L1 bytes a core": "peak_l1_bytes_per_core",
        "DRAM bytes": "dram_bytes",
        "FLOPs": "flops",
    }
    for title, key in rows.items():
        cells = (chip[key] for chip in report["chips"].values())
        table.add_row(title, *("not checked" if cell is None else f"{cell:,}" for cell in cells))
    rates = (chip["throughput"]["sequences_per_s"] for chip in report["chips"].values())
    table.add_row("sequences/s (estimate)", *(f"{rate:,.0f}" for rate in rates))
    return table
