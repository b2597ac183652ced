"""A run's folder: who holds it, its config, its metrics, its checkpoints."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from train.config import Config, differences, from_json, to_json
from train.errors import TrainError
from train.files import explained, replacing

_KEPT = "Checkpoints written before are safe"


class Workdir:
    """Paths and small files of a run; everything in it is written atomically or line by line."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process; TrainError when another process has it."""
        owner = self.path / ".pid"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            pid = owner.read_text().strip() if owner.exists() else "unknown"
            raise TrainError(
                f"workdir {self.path} is in use by pid {pid}; wait for it or use another --workdir"
            ) from error
        except OSError as error:
            raise TrainError(f"workdir {self.path} cannot be used: {error}") from error
        try:
            write_text(owner, f"{os.getpid()}\n")
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def set_config(self, config: Config) -> None:
        """Save the config, or compare it with the saved one; ValueError when they differ."""
        if self.config_file.exists():
            saved = self.read_config(config)
            changed = differences(saved, config)
            if changed:
                raise ValueError(
                    f"workdir {self.path} holds a run of another config "
                    f"({'; '.join(changed)}); give the same --set options, or another --workdir"
                )
        else:
            write_text(self.config_file, to_json(config))

    def read_config(self, template: Config | None = None) -> Config:
        """The config of the run; ValueError when the folder holds none."""
        if not self.config_file.is_file():
            raise ValueError(
                f"{self.path} is not a workdir of `moejax train`: it has no config.json"
            )
        text = self.config_file.read_text()
        try:
            recipe = json.loads(text)["recipe"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.config_file} is damaged: {error}") from error
        if template is None or template.recipe != recipe:
            from train.recipes import build

            template = build(recipe)
        return from_json(text, template)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut by a kill is left out."""
        if not self.metrics_file.exists():
            return []
        lines = []
        for text in self.metrics_file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return lines

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl."""
        write_text(self.metrics_file, "".join(f"{dump(line)}\n" for line in lines))

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with explained(self.metrics_file, _KEPT), self.metrics_file.open("a") as file:
            file.write(f"{dump(line)}\n")

    def final(self) -> dict[str, Any] | None:
        """The final line of a finished run, else None."""
        lines = self.read_metrics()
        return lines[-1] if lines and lines[-1].get("final") is True else None


def write_text(path: Path, text: str) -> None:
    """Replace a file in one move; TrainError when the disk is full or refuses."""
    with replacing(path, _KEPT) as file:
        file.write(text.encode())


def dump(line: dict[str, Any]) -> str:
    """One line of strict JSON; numbers that are not finite become null."""
    return json.dumps(_plain(line), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
