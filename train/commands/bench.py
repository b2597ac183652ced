"""Measure speed against baselines and the project's targets, and name those that are missed.

moejax bench mole
moejax bench mole --json runs/bench/mole.json
moejax bench moe --out runs/bench/moe
moejax bench gpu --out runs/bench/gpu
moejax bench lm --json runs/bench/lm.json
moejax bench chronos --json runs/bench/chronos.json
moejax bench moirai
"""

import argparse

HELP = "measure against the project's targets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", help="mole, moe, lm, moirai, chronos or gpu")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for a missed target")
    parser.add_argument(
        "--tune", action="store_true", help="gpu: find and store the fastest tiles first"
    )
    parser.add_argument("--out", metavar="DIR", help="write rows, a table and the suite's plots")


def run(args: argparse.Namespace) -> int:
    from train import bench

    return bench.run(args)
