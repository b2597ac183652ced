"""Series from a CSV or npz file, forecasts into one. Standard library and numpy."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowering.runtime.bolt import Quantiles
from lowering.runtime.packing import Series

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MISSING = ("", "nan", "na", "null", "none")


def read_series(path: Path, *, targets: int, covariates: bool) -> dict[str, Series]:
    """Series by name; ValueError for a file that cannot be read as such.

    `targets`, `covariates`: what a series has. CSV: a header, a column a series (with several
    targets: the columns are the targets of one series), times and other text in the first column
    allowed; an empty cell is a missing value.
    npz: `target` [L] or [C, L], or [series, C, L]; `known_ahead` and `past_only` likewise.
    """
    if path.suffix == ".npz":
        return _from_npz(path)
    if covariates:
        raise ValueError(f"this program takes covariates; give {path.stem}.npz with their arrays")
    columns = _from_csv(path)
    if targets == 1:
        return {name: Series(target=values[None]) for name, values in columns.items()}
    return {path.stem: Series(target=np.stack([*columns.values()]))}


def _from_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as CSV with a header: {error}") from error
    bad = [i for i, row in enumerate(rows) if len(row) != len(header)]
    if bad or not rows or len(set(header)) < len(header):
        raise ValueError(
            f"{path} has {len(rows)} rows, {len(bad)} of another length than the header"
            f" ({', '.join(header)}); give at least one row and a name of its own to each column"
        )
    columns = list(zip(*rows, strict=True))
    start = 0 if _is_number(columns[0][0]) else 1
    named = dict(zip(header[start:], columns[start:], strict=True))
    if not named:
        raise ValueError(f"{path} has no column of numbers")
    return {
        name: np.array([_number(c, name, path) for c in cells]) for name, cells in named.items()
    }


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.strip().lower() in MISSING
    return True


def _number(cell: str, name: str, path: Path) -> float:
    if cell.strip().lower() in MISSING:
        return math.nan
    try:
        return float(cell)
    except ValueError as error:
        raise ValueError(f"column {name!r} of {path} holds {cell!r}, which is no number") from error


def _from_npz(path: Path) -> dict[str, Series]:
    try:
        with np.load(path) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    unknown = sorted(arrays.keys() - {"target", "known_ahead", "past_only"})
    if "target" not in arrays or unknown:
        raise ValueError(f"{path} must hold target, and may hold known_ahead, past_only; {unknown}")
    if arrays["target"].ndim == 1:
        arrays["target"] = arrays["target"][None]
    if arrays["target"].ndim == 2:
        arrays = {name: array[None] for name, array in arrays.items()}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{path} has different numbers of series: {counts}")
    rows = range(counts["target"])
    return {str(i): Series(**{name: array[i] for name, array in arrays.items()}) for i in rows}


def write_forecasts(path: Path, found: dict[str, np.ndarray | Quantiles]) -> None:
    """Samples [S, H, C] or quantiles by series: npz, or CSV of mean and quantiles.

    Where there are no samples, the median stands for the mean.
    """
    if path.suffix == ".npz":
        quantiles = np.stack([_table(one)[1:] for one in found.values()], axis=1)
        some = [one for one in found.values() if isinstance(one, np.ndarray)]
        arrays: dict[str, Any] = {"samples": np.stack(some)} if some else {}
        names = np.array([*found])
        np.savez(path, quantiles=quantiles, levels=np.array(LEVELS), series=names, **arrays)
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["series", "target", "step", "mean", *map(str, LEVELS)])
        for name, one in found.items():
            writer.writerows(_rows(name, _table(one)))


def _table(found: np.ndarray | Quantiles) -> np.ndarray:
    """Mean and quantiles [1 + Q, H, C]."""
    if isinstance(found, Quantiles):
        return np.concatenate([found.at([0.5]), found.at(LEVELS)])
    return np.concatenate([found.mean(axis=0)[None], np.quantile(found, LEVELS, axis=0)])


def _rows(name: str, table: np.ndarray) -> Sequence[list]:
    _, steps, targets = table.shape
    return [
        [name, target, step + 1, *(f"{number:.7g}" for number in table[:, step, target])]
        for target in range(targets)
        for step in range(steps)
    ]
