"""Errors that a user can act on, other than wrong input (which is ValueError)."""


class TrainError(RuntimeError):
    """Training cannot go on: the message says why, what is safe, and what to do."""
