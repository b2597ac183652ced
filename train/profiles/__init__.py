"""Suites of `moejax profile`: a module each with `measure(say) -> list[Section]`."""
