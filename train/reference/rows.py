"""What a check of recorded tensors reads and writes: cases, expected values, rows of the result."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open


@dataclass(frozen=True)
class Row:
    """One recorded tensor: largest difference, what is allowed, and the verdict (None: unchecked).

    Allowed is `tolerance` + `rtol` times the recorded value.
    """

    case: str
    tensor: str
    max_abs: float | None = None
    tolerance: float | None = None
    ok: bool | None = None
    note: str = ""
    rtol: float = 0.0


@dataclass(frozen=True)
class Case:
    """The tensors and header metadata of one recorded file."""

    name: str
    folder: Path
    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]

    def tensor(self, name: str) -> np.ndarray:
        """A tensor by name; ValueError when the file does not hold it."""
        if name not in self.tensors:
            raise ValueError(f"tensor {name!r} is not in the file; it holds {sorted(self.tensors)}")
        return self.tensors[name]

    def number(self, name: str) -> float:
        """A number of the metadata; ValueError when it is absent or no number."""
        try:
            return float(self.metadata[name])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"metadata {name!r} is {self.metadata.get(name)!r}; a number is needed"
            ) from error

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Tensors whose name starts with the prefix, without it."""
        return {
            name.removeprefix(prefix): array
            for name, array in self.tensors.items()
            if name.startswith(prefix)
        }

    def matching(self, pattern: str) -> Iterator[re.Match[str]]:
        """Tensor names that match the whole pattern."""
        return filter(None, (re.fullmatch(pattern, name) for name in self.tensors))


@dataclass(frozen=True)
class Computed:
    """Our value of a recorded tensor or metadata number, and how far it may be off.

    `atol` may be an array that broadcasts against the value; a row shows its largest number.
    """

    value: Any
    atol: float | np.ndarray
    rtol: float = 0.0


@dataclass
class Findings:
    """What a check made of a case: our values by tensor name, and the tensors it read as inputs.

    `numbers` are our values of metadata fields. `note` says why the rest stays unchecked.
    """

    computed: dict[str, Computed] = field(default_factory=dict)
    numbers: dict[str, Computed] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    note: str = "not a tensor that this check knows"


def tensor_names(folder: Path) -> Iterator[set[str]]:
    """The tensor names of each safetensors file of a folder that can be read."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np") as file:
                yield set(file.keys())
        except (SafetensorError, OSError):
            continue


def cases(folder: Path, only: str | None = None) -> Iterator[Case | Row]:
    """The safetensors files of a folder by name; a failed row for one that cannot be read."""
    for path in sorted(folder.glob("*.safetensors")):
        if only is not None and not fnmatch(path.stem, only):
            continue
        try:
            with safe_open(path, "np") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                yield Case(path.stem, folder, tensors, file.metadata() or {})
        except (SafetensorError, OSError) as error:
            yield Row(path.stem, "(file)", ok=False, note=f"cannot be read: {error}")


def check_case(case: Case, check: Callable[[Case], Findings]) -> Iterator[Row]:
    """A row for each tensor that is no input; one failed row when the case cannot be run."""
    try:
        found = check(case)
    except ValueError as error:
        yield Row(case.name, "(case)", ok=False, note=str(error))
        return
    for name, computed in found.numbers.items():
        yield _compare(case.name, f"metadata {name}", case.number(name), computed)
    for name, recorded in case.tensors.items():
        if name in found.computed:
            yield _compare(case.name, name, recorded, found.computed[name])
        elif name not in found.inputs:
            yield Row(case.name, name, note=found.note)


def _compare(case: str, name: str, recorded: Any, computed: Computed) -> Row:
    recorded, value = np.asarray(recorded), np.asarray(computed.value)
    most = float(np.max(computed.atol))
    row = {"case": case, "tensor": name, "tolerance": most, "rtol": computed.rtol}
    if recorded.shape != value.shape:
        return Row(**row, ok=False, note=f"shape {value.shape}, recorded {recorded.shape}")
    recorded, value = recorded.astype(np.float64), value.astype(np.float64)
    missing = np.isnan(value) & np.isnan(recorded)
    difference = np.where(missing, 0.0, np.abs(value - recorded))
    allowed = computed.atol + computed.rtol * np.where(missing, 0.0, np.abs(recorded))
    if not np.isfinite(difference).all():
        return Row(**row, ok=False, note="not finite")
    worst = float(difference.max(initial=0.0))
    return Row(**row, max_abs=worst, ok=bool((difference <= allowed).all()))
