"""Forecasts with the programs of a Chronos T5 or mixture, token after token, without jax.

    forecaster = open_forecaster("program", device)
    samples = forecaster.forecast([Series(target=values[None])], num_samples=20)[0]  # [N, T, C]

One program encodes contexts and leaves what the decoder reads of them on the device; the other
gives the logits of the next token of each row, a sample of a context. Where experts work on the
encoder's positions, one program gives the logits of all steps. A context is routed once a window.
Tokens are drawn here, each row by a generator of its own, so that a forecast depends on no other
series.

B contexts, N samples of each, R = B * N rows, S tokens of a context, T steps, V tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowering.runtime.bins import Bins
from lowering.runtime.executor import Session
from lowering.runtime.folder import load
from lowering.runtime.generate import Runs
from lowering.runtime.head import make_head, read_head
from lowering.runtime.packing import Series
from lowering.runtime.sampling import Sampling, choose
from lowering.runtime.windows import chunks, filled, rows_of, stack_last

KIND = "chronos"
ENCODE, DECODE = "encode", "decode"


@dataclass(frozen=True, kw_only=True)
class ChronosSizes:
    """`batch` contexts side by side, `samples` rows of each; `context` steps that are read,
    `tokens` of a context, padding included; `horizon` steps of a window, `slots` of the decoder's
    cache.
    """

    batch: int
    samples: int
    context: int
    tokens: int
    horizon: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class ChronosCard:
    """What the host needs to know of the programs.

    `start`: the token before the first one; `end`: the one that is never drawn, and with
    `ends_context` the last of a context. `routed`: the encoder gives gates, the decoder takes them.
    `positions`: one program, logits at the encoder's positions.
    """

    sizes: ChronosSizes
    boundaries: tuple[float, ...]
    centers: tuple[float, ...]
    special: int
    pad: int
    start: int
    end: int
    ends_context: bool
    routed: bool
    positions: bool
    sampling: Sampling
    targets: int = 1
    covariates: bool = False

    @property
    def bins(self) -> Bins:
        """The tokenizer."""
        return Bins(
            boundaries=np.array(self.boundaries, np.float32),
            centers=np.array(self.centers, np.float32),
            special=self.special,
            pad=self.pad,
            end=self.end if self.ends_context else None,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values, schema and kind included."""
        return make_head(KIND, asdict(self))


class Steps(Protocol):
    """A window's programs: `begin` with contexts, then logits [R, V] of each step."""

    def begin(self, ids_BS: np.ndarray, mask_BS: np.ndarray) -> None: ...

    def logits(self, step: int, tokens_R: np.ndarray) -> np.ndarray: ...


class Decoding:
    """Two programs: contexts, then a step for all rows."""

    def __init__(self, encode: Runs, decode: Runs, card: ChronosCard):
        self._encode, self._decode, self._card = encode, decode, card
        self._given: dict[str, np.ndarray] = {}
        self.states = np.zeros(0)

    def begin(self, ids_BS: np.ndarray, mask_BS: np.ndarray) -> None:
        """Encode; the tokens that follow begin at the first slot again."""
        self.states, *gate = self._encode.run({"ids": ids_BS, "mask": mask_BS})
        self._given = {"mask": mask_BS} | dict(zip(("gate",), gate, strict=False))

    def logits(self, step: int, tokens_R: np.ndarray) -> np.ndarray:
        """What follows the tokens, which take the slot `step`."""
        ids, slot = tokens_R[:, None].astype(np.int32), np.array(step, np.int32)
        (logits_RV,) = self._decode.run({"ids": ids, **self._given, "slot": slot})
        return logits_RV


class Positions:
    """One program, whose positions are the steps."""

    def __init__(self, program: Runs, card: ChronosCard):
        self._program, self._samples = program, card.sizes.samples
        self._logits_BTV = np.zeros(0)

    def begin(self, ids_BS: np.ndarray, mask_BS: np.ndarray) -> None:
        """All logits."""
        (self._logits_BTV,) = self._program.run({"ids": ids_BS, "mask": mask_BS})

    def logits(self, step: int, tokens_R: np.ndarray) -> np.ndarray:
        """Those of a step; earlier tokens make no difference."""
        return np.repeat(self._logits_BTV[:, step], self._samples, axis=0)


class ChronosForecaster:
    """Programs ready to forecast. Targets of a series are forecast one by one."""

    def __init__(self, steps: Steps, card: ChronosCard):
        self.card = card
        self.sizes = card.sizes
        self._bins = card.bins
        self._steps = steps

    def forecast(
        self,
        series: Sequence[Series],
        *,
        num_samples: int | None = None,
        horizon: int | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> list[np.ndarray | ValueError]:
        """Samples float32 [N, T, C] of each series, or the error that says why it has none.

        What is None is as the checkpoint has it. Beyond a window's steps the next one goes on from
        the lower median of the samples. `progress` hears how many are finished. ValueError for
        num_samples or horizon below 1.
        """
        count = self.sizes.samples if num_samples is None else num_samples
        steps = self.sizes.horizon if horizon is None else horizon
        for name, number in (("num_samples", count), ("horizon", steps)):
            if number < 1:
                raise ValueError(f"{name} is {number}; it must be at least 1")
        config = replace(sampling or self.card.sampling, seed=seed)
        results: dict[int, np.ndarray | ValueError] = {}
        waiting: list[tuple[int, int, np.ndarray]] = []
        for number, one in enumerate(series):
            try:
                waiting += [(number, c, row) for c, row in enumerate(rows_of(one))]
            except ValueError as error:
                results[number] = error
        found: dict[int, list[np.ndarray]] = {}
        for some in chunks(waiting, self.sizes.batch):
            samples_BNT = self._roll_out(some, count, steps, config)
            for (number, _, _), samples_NT in zip(some, samples_BNT, strict=True):
                found.setdefault(number, []).append(samples_NT)
            if progress is not None:
                progress(len(results) + len(found))
        results |= {number: np.stack(parts, axis=-1) for number, parts in found.items()}
        return [results[number] for number in range(len(series))]

    def _roll_out(self, some, count: int, steps: int, config: Sampling) -> np.ndarray:
        """Samples [b, N, steps] of up to B rows, window after window."""
        rngs = [
            [np.random.default_rng([config.seed, number, c, sample]) for sample in range(count)]
            for number, c, _ in some
        ]
        context_bL = stack_last([row for _, _, row in some], self.sizes.context)
        windows = []
        while steps > 0:
            samples_bNT = self._window(context_bL, min(steps, self.sizes.horizon), rngs, config)
            windows.append(samples_bNT)
            steps -= samples_bNT.shape[2]
            middle = (count - 1) // 2
            median_bT = np.sort(samples_bNT, axis=1)[:, middle]
            context_bL = np.concatenate([context_bL, median_bT], axis=1)[:, -self.sizes.context :]
        return np.concatenate(windows, axis=2)

    def _window(self, context_bL: np.ndarray, steps: int, rngs, config: Sampling) -> np.ndarray:
        """Samples [b, N, steps] of the next window, as many at a time as the program has rows."""
        sizes, size = self.sizes, len(context_bL)
        ids_bS, mask_bS, scale_b = self._bins.context(context_bL, sizes.tokens)
        self._steps.begin(filled(ids_bS, sizes.batch), filled(mask_bS, sizes.batch))
        parts = [
            self._draw(size, steps, [own[first : first + sizes.samples] for own in rngs], config)
            for first in range(0, len(rngs[0]), sizes.samples)
        ]
        return self._bins.values(np.concatenate(parts, axis=1), scale_b)

    def _draw(self, size: int, steps: int, rngs, config: Sampling) -> np.ndarray:
        """Tokens [b, up to N, steps]: a row for each generator."""
        sizes, count = self.sizes, len(rngs[0])
        tokens_BN = np.full((sizes.batch, sizes.samples), self.card.start, np.int32)
        drawn = np.zeros((size, count, steps), np.int32)
        for step in range(steps):
            logits_RV = self._steps.logits(step, tokens_BN.reshape(-1))
            logits_BNV = logits_RV.reshape(sizes.batch, sizes.samples, -1).copy()
            logits_BNV[..., self.card.end] = -np.inf
            for b, own in enumerate(rngs):
                for n, rng in enumerate(own):
                    (tokens_BN[b, n],) = choose(logits_BNV[b, n, None], config, rng)
            drawn[:, :, step] = tokens_BN[:size, :count]
        return drawn


def read_card(data: Mapping[str, Any]) -> ChronosCard:
    """The card of a folder's head."""
    names = ("special", "pad", "start", "end")
    flags = ("ends_context", "routed", "positions")
    return ChronosCard(
        sizes=ChronosSizes(**{name: int(size) for name, size in data["sizes"].items()}),
        boundaries=tuple(map(float, data["boundaries"])),
        centers=tuple(map(float, data["centers"])),
        **{name: int(data[name]) for name in names},
        **{name: bool(data[name]) for name in flags},
        sampling=Sampling(**data["sampling"]),
    )


def open_chronos(directory: str | Path, device: Any) -> ChronosForecaster:
    """The folder's programs on a device; weights and state that both have lie there once."""
    card, place = read_card(read_head(directory)), Path(directory)
    if card.positions:
        folder = load(place)
        program = Session(folder.program, folder.weights, device)
        return ChronosForecaster(Positions(program, card), card)
    first, second = load(place / ENCODE), load(place / DECODE)
    encode = Session(first.program, first.weights, device)
    decode = Session(second.program, second.weights, device, shared=encode)
    return ChronosForecaster(Decoding(encode, decode, card), card)
