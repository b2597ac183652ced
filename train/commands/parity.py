"""Check a program folder against the tensors recorded when it was lowered.

On the reference backend the device's dtypes and rounding are emulated; with --backend ttnn the
program runs on the card or simulator that tt-metal's environment names. Results go to parity.json.

  moejax parity runs/mole_etth1/program
  moejax parity runs/mole_etth1/program --backend ttnn --bisect
"""

import argparse

HELP = "check a program against its recorded tensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of `moejax lower`")
    parser.add_argument("--backend", choices=("reference", "ttnn"), default="reference")
    parser.add_argument(
        "--bisect", action="store_true", help="compare op by op; name the first that differs"
    )


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from lowering.parity import PARITY, check_folder
    from lowering.runtime.folder import program_folders

    console = Console()
    checks = {
        folder: check_folder(folder, backend=args.backend, bisect=args.bisect)
        for folder in program_folders(args.folder)
    }
    reports = [report for found in checks.values() for report in found]
    for report in reports:
        console.print(str(report), markup=False, highlight=False)
        if args.bisect:
            table = Table("op", "value", "PCC", "relative L2", "predicted", "max abs", "ok", "from")
            for row in report.ops:
                m, mark = row.metrics, "yes" if row.ok else "NO"
                predicted = "" if row.predicted is None else f"{row.predicted:.2e}"
                numbers = f"{m.pcc:.6f}", f"{m.relative_l2:.2e}", predicted, f"{m.max_abs:.2e}"
                table.add_row(f"{row.op} {row.call}", row.name, *numbers, mark, row.source)
            console.print(table)
    for folder in checks:
        console.print(f"Results: {folder / PARITY}", soft_wrap=True)
    return 0 if all(report.ok for report in reports) else 1
