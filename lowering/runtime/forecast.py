"""Probabilistic forecasts with the program of a MOIRAI-MoE, patch after patch, without jax.

    forecaster = open_forecaster("program", device)
    samples = forecaster.forecast([Series(target=values[None])], num_samples=100)[0]  # [S, H, C]

The program gives, for the tokens that are read, the head's outputs and the scaler's location and
scale; draws are made here, written into their tokens, and the program runs again, since they count
in the scaler. The first patch's distribution is computed once a series. A row draws by a generator
of its own, so that a forecast depends on no other series and not on the batch.

Whatever runs a program serves: `Session` on a device, `HostSession` of the reference backend.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowering.runtime.distributions import Mixture
from lowering.runtime.executor import Session
from lowering.runtime.folder import load
from lowering.runtime.generate import Runs
from lowering.runtime.head import make_head, read_head
from lowering.runtime.packing import ForecastSizes, Row, Series, pack
from lowering.runtime.windows import chunks

KIND = "moirai_moe"
INPUTS = ("target", "counted", "sample", "time", "variate", "read")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the host needs to know of a program. `scaling`: it returns location and scale."""

    sizes: ForecastSizes
    distribution: Mixture
    scaling: bool

    def to_json(self) -> dict[str, Any]:
        """JSON values, schema and kind included."""
        return make_head(KIND, asdict(self))

    @property
    def targets(self) -> int:
        """Variates that are forecast together."""
        return self.sizes.targets

    @property
    def covariates(self) -> bool:
        """Whether a series comes with others."""
        return self.sizes.known_ahead + self.sizes.past_only > 0


@dataclass(frozen=True)
class _Path:
    """A sample of one series: its tokens, which are written in, and its own generator."""

    row: Row
    values: np.ndarray  # [M, C, P]
    rng: np.random.Generator


class Forecaster:
    """A program ready to forecast."""

    def __init__(self, program: Runs, card: Card):
        self.card = card
        self.sizes = card.sizes
        self._program = program

    def forecast(
        self,
        series: Sequence[Series],
        *,
        num_samples: int = 100,
        seed: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> list[np.ndarray | ValueError]:
        """Samples [S, H, C] of each series, or the error that says why it has none.

        `progress` hears how many are finished. ValueError for num_samples below 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
        found: list[np.ndarray | ValueError] = []
        for start in range(0, len(series), self.sizes.batch):
            some = series[start : start + self.sizes.batch]
            found += self._some(some, num_samples, range(start, start + len(some)), seed)
            if progress is not None:
                progress(len(found))
        return found

    def _some(self, series, num_samples: int, numbers: Sequence[int], seed: int):
        """The forecasts of as many series as the program has rows."""
        results: dict[int, Any] = {}
        rows: dict[int, Row] = {}
        for number, one in zip(numbers, series, strict=True):
            try:
                one.check(self.sizes)
                rows[number] = pack(one, self.sizes)
            except ValueError as error:
                results[number] = error
        paths: dict[int, list[_Path]] = {}
        if rows:
            first = self._run([*rows.values()], 0)
            for index, (number, row) in enumerate(rows.items()):
                own = tuple(part[index] for part in first)
                paths[number] = [self._begin(row, own, seed, number, s) for s in range(num_samples)]
            self._go_on([path for each in paths.values() for path in each])
        for number, each in paths.items():
            results[number] = np.stack([self._steps(path.values) for path in each])
        return [results[number] for number in numbers]

    def _begin(self, row: Row, found, seed: int, number: int, sample: int) -> _Path:
        sizes = self.sizes
        path = _Path(
            Row(row.target.copy(), row.counted.copy(), row.sample, row.time, row.variate),
            np.zeros((sizes.future, sizes.targets, sizes.width)),
            np.random.default_rng([seed, number, sample]),
        )
        self._write(path, found, 0)
        return path

    def _go_on(self, paths: list[_Path]) -> None:
        """All steps but the first one, as many paths at a time as the program has rows."""
        for some in chunks(paths, self.sizes.batch):
            for step in range(1, self.sizes.future):
                found = self._run([path.row for path in some], step)
                for index, path in enumerate(some):
                    self._write(path, tuple(part[index] for part in found), step)

    def _run(self, rows: list[Row], step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Head's outputs [rows, C, M], location and scale [rows, C, 1] for patch `step`."""
        sizes = self.sizes
        padded = rows + [rows[-1]] * (sizes.batch - len(rows))
        inputs = {name: np.stack([getattr(row, name) for row in padded]) for name in INPUTS[:-1]}
        read = sizes.read_at(step)
        inputs["read"] = np.broadcast_to(read, (sizes.batch, sizes.targets)).astype(np.int32)
        if not self.card.scaling:
            del inputs["counted"]
        head, *standard = self._program.run(inputs)
        if not self.card.scaling:
            standard = [np.zeros((*head.shape[:2], 1)), np.ones((*head.shape[:2], 1))]
        else:
            standard = [part[:, read] for part in standard]
        return head, standard[0], standard[1]

    def _write(self, path: _Path, found, step: int) -> None:
        """Draw patch `step`, and let the steps after it see it."""
        sizes = self.sizes
        head, loc, scale = found
        drawn = self.card.distribution.draw(head, loc, scale, path.rng)
        path.values[step, :, : sizes.patch] = drawn[:, : sizes.patch]
        if step + 1 < sizes.future:
            own = sizes.read_at(step + 1)
            path.row.target[own] = path.values[step]
            path.row.counted[own, : sizes.patch] = True

    def _steps(self, values_MCP: np.ndarray) -> np.ndarray:
        """Patches -> steps [H, C]."""
        sizes = self.sizes
        cells = values_MCP[..., : sizes.patch].transpose(0, 2, 1)
        return cells.reshape(-1, sizes.targets)[: sizes.horizon].astype(np.float32)


def read_card(data: Mapping[str, Any]) -> Card:
    """The card of a folder's head."""
    mixture = data["distribution"]
    return Card(
        sizes=ForecastSizes(**{name: int(size) for name, size in data["sizes"].items()}),
        distribution=Mixture(
            components=tuple(mixture["components"]),
            fixed_scales=tuple(float(scale) for scale in mixture["fixed_scales"]),
            mixture=bool(mixture["mixture"]),
        ),
        scaling=bool(data["scaling"]),
    )


def open_moirai(directory: str | Path, device: Any) -> Forecaster:
    """The folder's program on a device."""
    card, folder = read_card(read_head(directory)), load(directory)
    return Forecaster(Session(folder.program, folder.weights, device), card)
