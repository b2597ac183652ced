"""The `moejax` command: one module in train/commands for each subcommand.

Command modules import nothing heavy until they run, so that help is quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from train.commands import (
    bench,
    check_reference,
    evaluate,
    forecast,
    generate,
    lower,
    parity,
    profile,
    report,
    train,
)
from train.errors import TrainError

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "forecast": forecast,
    "lower": lower,
    "parity": parity,
    "report": report,
    "check-reference": check_reference,
    "bench": bench,
    "profile": profile,
}
_EPILOG = """start with:  moejax train mole_debug
errors are one line; MOEJAX_TRACEBACK=1 shows where they come from"""


def make_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands."""
    parser = argparse.ArgumentParser(
        prog="moejax",
        description="Mixture-of-Experts models: train, evaluate, lower to ttnn programs, check.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(one)
        one.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0: fine, 1: failed, 2: wrong input, 130: interrupted."""
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, TrainError) as error:
        if os.environ.get("MOEJAX_TRACEBACK"):
            raise
        print(f"moejax {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print(f"moejax {args.command}: interrupted; nothing written is lost", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
