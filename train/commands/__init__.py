"""Subcommands of `moejax`: HELP, add_arguments(parser) and run(args) -> exit status each."""
