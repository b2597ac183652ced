"""Suites of `moejax bench`: a module each with `measure(say) -> list[Row]`."""
