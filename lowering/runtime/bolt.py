"""Forecasts with the program of a Chronos-Bolt: quantiles of a block of steps, without jax.

The program takes patches of values in units of their own, and gives quantiles in these units.

B rows, L values, P values of a patch, S patches, Q quantiles, T steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowering.runtime.executor import Session
from lowering.runtime.folder import load
from lowering.runtime.generate import Runs
from lowering.runtime.head import make_head, read_head
from lowering.runtime.packing import Series
from lowering.runtime.windows import filled, rows_of, stack_last

KIND = "chronos_bolt"
FLAT = np.float32(1e-5)  # the scale of values that are all the same


@dataclass(frozen=True, kw_only=True)
class BoltCard:
    """`batch` rows side by side, `context` steps that are read, `horizon` steps of a block; `patch`
    values of a patch, `stride` from one to the next; the levels of the quantiles.
    """

    batch: int
    context: int
    horizon: int
    patch: int
    stride: int
    levels: tuple[float, ...]
    targets: int = 1
    covariates: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON values, schema and kind included."""
        return make_head(KIND, asdict(self))


@dataclass(frozen=True)
class Quantiles:
    """float32 [Q, T, C] at increasing levels."""

    levels: tuple[float, ...]
    values: np.ndarray

    def at(self, levels: Sequence[float]) -> np.ndarray:
        """At other levels: linear between these, beyond them the outermost."""
        upper = np.clip(np.searchsorted(self.levels, levels), 1, len(self.levels) - 1)
        known = np.array(self.levels)
        if len(known) == 1:
            return np.repeat(self.values, len(levels), axis=0)
        share = (np.array(levels) - known[upper - 1]) / (known[upper] - known[upper - 1])
        share = np.clip(share, 0, 1)[:, None, None]
        return (1 - share) * self.values[upper - 1] + share * self.values[upper]


class BoltForecaster:
    """A program ready to forecast. Targets of a series are forecast one by one."""

    def __init__(self, program: Runs, card: BoltCard):
        self.card = card
        self._program = program

    def forecast(
        self,
        series: Sequence[Series],
        *,
        horizon: int | None = None,
        progress: Callable[[int], Any] | None = None,
        **ignored: Any,
    ) -> list[Quantiles | ValueError]:
        """Quantiles of each series, or the error that says why it has none.

        Beyond a block every quantile's path goes on as a series of its own; the quantiles of all
        that they give are the next block. Nothing is drawn: seeds and sample counts are ignored.
        """
        steps = self.card.horizon if horizon is None else horizon
        if steps < 1:
            raise ValueError(f"horizon is {steps}; it must be at least 1")
        results: list[Quantiles | ValueError] = []
        for one in series:
            try:
                rows = stack_last(rows_of(one), self.card.context)
                values_CQT = self._roll_out(rows, steps)
                results.append(Quantiles(self.card.levels, values_CQT.transpose(1, 2, 0)))
            except ValueError as error:
                results.append(error)
            if progress is not None:
                progress(len(results))
        return results

    def _roll_out(self, rows_CL: np.ndarray, steps: int) -> np.ndarray:
        """Quantiles [C, Q, steps]."""
        levels = self.card.levels
        blocks = [self._run(rows_CL)]
        paths_CQL = np.repeat(rows_CL[:, None], len(levels), axis=1)
        while steps > self.card.horizon * len(blocks):
            paths_CQL = np.concatenate([paths_CQL, blocks[-1]], axis=2)[..., -self.card.context :]
            found = self._run(paths_CQL.reshape(-1, paths_CQL.shape[2]))
            found = found.reshape(len(rows_CL), len(levels) ** 2, -1)
            block_QCT = np.quantile(found, levels, axis=1)
            blocks.append(block_QCT.transpose(1, 0, 2).astype(np.float32))
        return np.concatenate(blocks, axis=2)[..., :steps]

    def _run(self, rows_RL: np.ndarray) -> np.ndarray:
        """Quantiles [R, Q, T] of a block after each row."""
        size = self.card.batch
        starts = range(0, len(rows_RL), size)
        return np.concatenate([self._some(rows_RL[start : start + size]) for start in starts])

    def _some(self, rows_RL: np.ndarray) -> np.ndarray:
        inputs, loc_R11, scale_R11 = pack(rows_RL, self.card)
        full = {name: filled(array, self.card.batch) for name, array in inputs.items()}
        (scaled_BQT,) = self._program.run(full)
        return (scaled_BQT[: len(rows_RL)] * scale_R11 + loc_R11).astype(np.float32)


def pack(rows_RL: np.ndarray, card: BoltCard) -> tuple[dict[str, np.ndarray], Any, Any]:
    """(inputs of the program for rows with NaN where a value is missing; loc, scale [R, 1, 1]).

    patches [R, S, P] float32 in units of their own, 0 where nothing is; there [R, S, P] float32: 1
    where a value is; mask [R, S] bool: patches that hold one.
    """
    scaled_RL, loc_R, scale_R = standardise(rows_RL)
    patches_RSP = _patches(scaled_RL, card)
    there = ~np.isnan(patches_RSP)
    inputs = {
        "patches": np.where(there, patches_RSP, 0).astype(np.float32),
        "there": there.astype(np.float32),
        "mask": there.any(axis=2),
    }
    return inputs, loc_R[:, None, None], scale_R[:, None, None]


def _patches(values_RL: np.ndarray, card: BoltCard) -> np.ndarray:
    """[R, S, P]; NaN is put in front where the length is no multiple of P."""
    front = -values_RL.shape[1] % card.patch
    values_RL = np.pad(values_RL, ((0, 0), (front, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(values_RL, card.patch, axis=1)
    return windows[:, :: card.stride]


def standardise(values_RL: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values less loc over scale; loc, scale [R]) of what is there; NaN stays."""
    there = ~np.isnan(values_RL)
    count_R = np.maximum(there.sum(axis=1), 1)

    def mean(x: np.ndarray) -> np.ndarray:
        return np.where(there, x, 0).sum(axis=1, dtype=np.float64) / count_R

    loc_R = mean(values_RL).astype(np.float32)
    scale_R = np.sqrt(mean(np.square(values_RL - loc_R[:, None]))).astype(np.float32)
    scale_R = np.where(there.any(axis=1), np.where(scale_R == 0, FLAT, scale_R), np.float32(1))
    return (values_RL - loc_R[:, None]) / scale_R[:, None], loc_R, scale_R


def read_card(data: Mapping[str, Any]) -> BoltCard:
    """The card of a folder's head."""
    return BoltCard(
        batch=int(data["batch"]),
        context=int(data["context"]),
        horizon=int(data["horizon"]),
        patch=int(data["patch"]),
        stride=int(data["stride"]),
        levels=tuple(map(float, data["levels"])),
    )


def open_bolt(directory: str | Path, device: Any) -> BoltForecaster:
    """The folder's program on a device."""
    card, folder = read_card(read_head(directory)), load(directory)
    return BoltForecaster(Session(folder.program, folder.weights, device), card)
