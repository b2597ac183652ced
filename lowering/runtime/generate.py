"""Continues prompts with two programs: one for a whole prompt, one for each token after it.

    generator = open_generator("program", device)
    for tokens in generator.stream([[1, 5, 9]], 32): ...

Both programs share weights, and the keys of earlier tokens, which stay on the device. A prompt is
padded on the left to the length that the first one takes; the next tokens are drawn on the host.
Whatever runs a program serves: `Session` on a device, `HostSession` of the reference backend.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowering.runtime.executor import Session
from lowering.runtime.folder import Folder, load
from lowering.runtime.sampling import Sampling, choose

GENERATOR = "generator.json"
GENERATOR_SCHEMA = 1
PARTS = ("prefill", "decode")


class Runs(Protocol):
    """Something that runs a program: inputs by name to outputs; `reset` zeros its state."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...

    def reset(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sequences side by side; longest prompt; slots of the cache, prompt included; vocabulary."""

    batch: int
    prompt: int
    slots: int
    vocab: int


class Generator:
    """The two programs of a model, ready to continue prompts."""

    def __init__(self, prefill: Runs, decode: Runs, sizes: Sizes):
        self.sizes = sizes
        self._prefill = prefill
        self._decode = decode

    def start(self, prompts: Sequence[Sequence[int]]) -> "Run":
        """A run that stands behind the prompts; ValueError for prompts that do not fit."""
        return Run(self._prefill, self._decode, self.sizes, prompts)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        sampling: Sampling | None = None,
    ) -> Iterator[np.ndarray]:
        """`count` times one more token for each prompt, int32 [B]; fewer where the cache ends."""
        config = sampling or Sampling()
        rng = np.random.default_rng(config.seed)
        run = self.start(prompts)
        for index in range(min(count, run.room + 1)):
            tokens = choose(run.last, config, rng)
            yield tokens
            if index + 1 < count and run.room:
                run.feed(tokens)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """Each prompt's continuation."""
        rows = list(self.stream(prompts, count, sampling))
        return [[int(row[index]) for row in rows] for index in range(len(prompts))]


class Run:
    """Prompts and what followed. `last`: logits [B, V] of the next token; `room`: free slots."""

    def __init__(self, prefill: Runs, decode: Runs, sizes: Sizes, prompts):
        self._decode = decode
        ids_BS, mask_BS = _pad_left(prompts, sizes)
        self._mask_BT = np.zeros((sizes.batch, sizes.slots), bool)
        self._mask_BT[:, : sizes.prompt] = mask_BS
        self._position_B = mask_BS.sum(axis=1).astype(np.int32)
        self._slot = sizes.prompt
        self._count = len(prompts)
        self.room = sizes.slots - sizes.prompt
        prefill.reset()
        (logits_BV,) = prefill.run({"ids": ids_BS, "mask": mask_BS})
        self.last = logits_BV[: self._count]

    def feed(self, tokens_B: np.ndarray) -> np.ndarray:
        """Append a token to each row; the logits of the one after it. ValueError without room."""
        if not self.room:
            raise ValueError(f"the cache has {self._slot} slots, and all are taken")
        ids = np.zeros((len(self._mask_BT), 1), np.int32)
        ids[: self._count, 0] = tokens_B
        inputs = {
            "ids": ids,
            "mask": self._mask_BT,
            "slot": np.int32(self._slot),
            "position": self._position_B,
        }
        (logits_BV,) = self._decode.run(inputs)
        self._mask_BT[:, self._slot] = True
        self._position_B += 1
        self._slot += 1
        self.room -= 1
        self.last = logits_BV[: self._count]
        return self.last


def _pad_left(prompts, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """ids int32 and mask bool, both [B, S]; rows without a prompt hold one token."""
    if not 1 <= len(prompts) <= sizes.batch:
        raise ValueError(f"there are {len(prompts)} prompts; the programs take 1 to {sizes.batch}")
    ids = np.zeros((sizes.batch, sizes.prompt), np.int32)
    mask = np.zeros(ids.shape, bool)
    mask[:, -1] = True
    for row, prompt in enumerate(prompts):
        wrong = [token for token in prompt if not 0 <= token < sizes.vocab]
        if not 1 <= len(prompt) <= sizes.prompt or wrong:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, unknown ones {wrong}; it must have 1 to"
                f" {sizes.prompt} tokens below {sizes.vocab}"
            )
        ids[row, -len(prompt) :] = prompt
        mask[row, -len(prompt) :] = True
    return ids, mask


def read_generator(directory: str | Path) -> tuple[dict[str, Folder], Sizes]:
    """The folders of both programs by name, and their sizes; ValueError for another folder."""
    place = Path(directory) / GENERATOR
    try:
        data = json.loads(place.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != GENERATOR_SCHEMA:
        raise ValueError(f"{place}: this version reads schema {GENERATOR_SCHEMA}")
    try:
        sizes = Sizes(**{name: int(size) for name, size in data["sizes"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{place} states no sizes: {error!r}") from error
    return {name: load(Path(directory) / name) for name in PARTS}, sizes


def open_generator(directory: str | Path, device: Any) -> Generator:
    """The folder's programs on a device; weights and state that both have lie there once."""
    folders, sizes = read_generator(directory)
    first, second = (folders[name] for name in PARTS)
    prefill = Session(first.program, first.weights, device)
    decode = Session(second.program, second.weights, device, shared=prefill)
    return Generator(prefill, decode, sizes)
