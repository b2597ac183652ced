"""Series for programs that read a context: checked, as rows of one length. Numpy only."""

from collections.abc import Iterator, Sequence

import numpy as np

from lowering.runtime.packing import Series


def rows_of(series: Series) -> list[np.ndarray]:
    """The targets as float32 rows [L], NaN where a value is missing.

    ValueError for a series without a step, or with values that are infinite or too large.
    """
    target = np.atleast_2d(np.asarray(series.target, np.float64))
    if target.ndim != 2 or not target.size:
        raise ValueError(f"the target has shape {target.shape}; give [targets, steps]")
    bad = np.abs(target) > np.finfo(np.float32).max
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} values are infinite or too large for float32, the first at step"
            f" {int(bad.any(axis=0).argmax()) + 1}"
        )
    return [*target.astype(np.float32)]


def stack_last(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """[B, length]: the last values of rows, NaN in front of short ones."""
    stacked = np.full((len(rows), length), np.nan, np.float32)
    for place, row in zip(stacked, rows, strict=True):
        last = row[-length:]
        place[length - len(last) :] = last
    return stacked


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """Parts of up to `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def filled(rows: np.ndarray, count: int) -> np.ndarray:
    """Rows up to `count`, the last one repeated."""
    return rows[np.minimum(np.arange(count), len(rows) - 1)]
