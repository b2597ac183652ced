"""What pipelines take: series of any lengths, checked, and as rows of a few sizes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moejax.generation.prompts import bucket

MOST_ROWS = 32
NO_NUMBERS = "cmM"  # complex numbers, durations, dates: numpy would turn them into floats
LEVELS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))


def as_series(inputs: Any) -> list[np.ndarray]:
    """float32 series [L] of one series, rows [B, L] or a list of series; NaN is a missing value.

    ValueError for none, an empty one, other shapes, values that are no numbers or infinite.
    """
    rows = list(inputs) if isinstance(inputs, list | tuple) else _rows(np.asarray(inputs))
    if isinstance(inputs, list | tuple) and rows and np.ndim(rows[0]) == 0:
        rows = [inputs]
    if not rows:
        raise ValueError("there is no series to forecast")
    return [_checked(row, index) for index, row in enumerate(rows)]


def _rows(values: np.ndarray) -> list[np.ndarray]:
    if values.ndim not in (1, 2):
        raise ValueError(
            f"inputs have shape {values.shape}; give [steps], [series, steps] or a list"
        )
    return list(np.atleast_2d(values))


def _checked(row: Any, index: int) -> np.ndarray:
    try:
        given = np.asarray(row)
        if given.dtype.kind in NO_NUMBERS:
            raise TypeError(f"their dtype is {given.dtype}")
        wide = given.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"series {index} holds values that are no numbers: {error}") from error
    if wide.ndim != 1 or not len(wide):
        raise ValueError(f"series {index} has shape {wide.shape}; it must be [steps], at least one")
    bad = np.abs(wide) > np.finfo(np.float32).max
    if bad.any():
        raise ValueError(
            f"series {index} has {int(bad.sum())} values that are infinite or too large for"
            f" float32, the first at step {int(bad.argmax()) + 1}"
        )
    return wide.astype(np.float32)


def check_horizon(prediction_length: int | None, trained: int, limited: bool, warn: Any) -> int:
    """The steps to forecast; ValueError for none, or where more than trained are not allowed."""
    steps = trained if prediction_length is None else prediction_length
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"prediction_length is {steps!r}; it must be a whole number >= 1")
    if steps > trained:
        text = (
            f"prediction_length is {steps}; the model was trained for {trained} steps, and its"
            " forecasts get worse beyond"
        )
        if limited:
            raise ValueError(f"{text}. Without limit_prediction_length it does forecast so far")
        warn(text, stacklevel=3)
    return int(steps)


def check_levels(levels: Sequence[float]) -> list[float]:
    """ValueError for quantile levels outside of (0, 1), or none."""
    found = [float(level) for level in levels]
    if not found or not all(0 < level < 1 for level in found):
        raise ValueError(f"quantile_levels are {found}; they must be numbers in (0, 1)")
    return found


def padded_length(length: int, longest: int) -> int:
    """The length of a short list that a context of so many tokens is padded to."""
    return max(min(bucket(length), longest), length)


def pad_front(rows: np.ndarray, length: int, value: Any) -> np.ndarray:
    """Rows [B, L] with values in front up to the length."""
    front = length - rows.shape[1]
    return np.pad(rows, ((0, 0), (front, 0)), constant_values=value)


def parts(count: int, most: int = MOST_ROWS) -> Iterator[tuple[np.ndarray, int]]:
    """(row numbers, how many of them count): parts of few sizes, the last row repeated to fill."""
    for start in range(0, count, most):
        size = min(most, count - start)
        rows = 1 << (size - 1).bit_length()
        yield np.minimum(start + np.arange(rows), count - 1), size
