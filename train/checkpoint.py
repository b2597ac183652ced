"""Checkpoints that survive a kill at any moment, a damaged file and a full disk.

A checkpoint is a folder: `arrays` (orbax: training state and the best parameters so far),
`host.json` (the loop's own numbers, iterator state, config) and `manifest.json` (sha256 of every
other file). It is written under another name and renamed when complete, so a folder with a number
for a name is whole, unless the disk damaged it; then the hashes tell, and the one before it
serves. The last two are kept.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from train.errors import TrainError
from train.files import is_disk_full

KEEP = 2
SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """What was read: its number, the arrays as saved, the loop's own numbers."""

    number: int
    arrays: Any
    host: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print):
        self.folder, self.say = folder, say
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def numbers(self) -> list[int]:
        """Numbers of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(one.name) for one in self.folder.iterdir() if one.name.isdigit())

    def damaged(self) -> list[str]:
        """Names of the checkpoints that were set aside as damaged."""
        return sorted(one.name for one in self.folder.glob("damaged-*"))

    def clean(self) -> None:
        """Remove what a killed writer left behind; only for the holder of the workdir's lock."""
        if self.folder.is_dir():
            for one in self.folder.glob("writing-*"):
                shutil.rmtree(one)

    def save(self, number: int, arrays: Any, host: dict[str, Any]) -> None:
        """Write checkpoint `number` and drop the ones not kept.

        TrainError when it cannot be written (no space, no permission); the older ones stay.
        """
        partial, final = self.folder / f"writing-{number:08d}", self.folder / f"{number:08d}"
        try:
            self._write(partial, arrays, host)
            if final.exists():  # left by a run that fell back to an older checkpoint
                shutil.rmtree(final)
            partial.rename(final)
        except Exception as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise self._cannot_write(number, error) from error
        for old in self.numbers()[:-KEEP]:
            self._set_aside(old, "writing-old")
        self.clean()

    def _write(self, folder: Path, arrays: Any, host: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)) + SPARE_BYTES
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, f"{needed} bytes are needed")
        with _quiet():
            self._orbax.save((folder / "arrays").absolute(), args=ocp.args.StandardSave(arrays))
        (folder / "host.json").write_text(json.dumps(host))
        hashes = {name: _sha256(folder / name) for name in _files(folder)}
        (folder / "manifest.json").write_text(json.dumps(hashes))

    def load_host(self, number: int) -> dict[str, Any]:
        """The loop's own numbers of a checkpoint; ValueError when any of its files has changed."""
        folder = self.folder / f"{number:08d}"
        try:
            hashes = json.loads((folder / "manifest.json").read_text())
            for name in sorted(hashes.keys() | set(_files(folder))):
                if name not in hashes:
                    raise ValueError(f"{name} is not in the manifest")
                if _sha256(folder / name) != hashes[name]:
                    raise ValueError(f"{name} has changed")
            return json.loads((folder / "host.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoint {folder} is damaged: {error}") from error

    def load_latest(self, template: Any, *, owner: bool = False) -> Checkpoint | None:
        """The newest undamaged checkpoint, or None; says so when it had to fall back.

        `template`: a pytree of arrays or shapes. The `owner` (holder of the workdir's lock)
        renames a damaged checkpoint, so that it is neither tried nor counted again.
        """
        for number in reversed(self.numbers()):
            try:
                host = self.load_host(number)
            except ValueError as error:
                self.say(f"{error}; trying the one before it")
                if owner:
                    self._set_aside(number, "damaged")
                continue
            return Checkpoint(number, self._restore(number, template), host)
        return None

    def _set_aside(self, number: int, why: str) -> None:
        name = f"{number:08d}"
        target = self.folder / f"{why}-{name}"
        shutil.rmtree(target, ignore_errors=True)
        (self.folder / name).rename(target)

    def _restore(self, number: int, template: Any) -> Any:
        path = (self.folder / f"{number:08d}" / "arrays").absolute()
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), template
        )
        return self._orbax.restore(path, args=ocp.args.StandardRestore(abstract))

    def _cannot_write(self, number: int, error: Exception) -> TrainError:
        left = self.numbers()
        safe = "there was none before it; training will start from the beginning"
        if left:
            safe = f"checkpoint {left[-1]} is complete and training will continue from it"
        reason = f"{type(error).__name__}: {error}"
        if is_disk_full(error):
            reason = f"no space left on the disk of {self.folder}"
        return TrainError(
            f"cannot write checkpoint {number}: {reason}. Nothing written is lost: {safe}. Free "
            "some space or correct the cause, then run the same command again"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that orbax logs beside the error that it raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def params_sha256(params: Any) -> str:
    """sha256 over the bytes of the parameter leaves, in the order of their paths."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    digest = hashlib.sha256()
    for path in sorted(leaves):
        digest.update(np.ascontiguousarray(jax.device_get(leaves[path])).tobytes())
    return digest.hexdigest()


def _files(folder: Path) -> list[str]:
    """Relative names of all files of a checkpoint but its manifest."""
    names = []
    for root, _, files in os.walk(folder):
        names += [str((Path(root) / name).relative_to(folder)) for name in files]
    return sorted(name for name in names if name != "manifest.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
