"""Write the ONE report of a workdir: report.html (one file, pictures inside) and report.json.

It shows what train, eval, lower and parity left in the workdir, and computes what is missing.

  moejax report runs/mole_etth1
"""

import argparse

HELP = "write the report of a workdir"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="folder of `moejax train`")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from train.report import write_report

    console = Console()
    with console.status("writing the report"):
        paths = write_report(args.workdir)
    console.print("Report: " + ", ".join(map(str, paths)), soft_wrap=True)
    return 0
