"""Compare our models with recorded tensors of the published implementations.

Finds out what system a folder holds, runs every case in it, prints a row a tensor. Exit status: 0
all agree, 1 one does not, 2 nothing was checked.

  moejax check-reference tests/fixtures/mole --only '*dlinear*' --json rows.json
"""

import argparse

HELP = "compare with recorded tensors of the published implementations"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of recorded cases")
    parser.add_argument("--only", metavar="GLOB", help="only the cases whose name fits")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")


def run(args: argparse.Namespace) -> int:
    from train import reference

    return reference.run(args.folder, args.only, args.json)
