"""Break time and memory of a layer down by its parts, and write reports.

moejax profile moe
moejax profile moe --out runs/profile
"""

import argparse

HELP = "where time and memory go, with reports"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", help="what to profile: moe")
    parser.add_argument(
        "--out", metavar="DIR", default="runs/profile", help="folder of the reports (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from train import profile

    return profile.run(args)
