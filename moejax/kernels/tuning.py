"""Tile sizes of the grouped products by kernels, product and shape: a table, then a tuner's file.

The file is JSON: {"CARD/KERNELS/PRODUCT/KxMxE": {"columns": ..., ...}}. It is `grouped_tiles.json`
in $MOEJAX_CACHE, else in $XDG_CACHE_HOME/moejax, else in ~/.cache/moejax; `moejax bench gpu --tune`
writes it, nothing else does. What it says comes before the table. It is read when a program is
traced: what was compiled before stays as it is.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jax

Product = Literal["plain", "transposed", "swiglu", "weights"]
FILE = "grouped_tiles.json"


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A tile has `columns` columns; a step contracts `depth`; `stages` steps are loaded ahead.

    `strip`: column tiles that follow one another before the next rows, so that operands stay in
    the cache. `warps` of a program: Triton's alone. The Hopper kernels have depth 64. ValueError
    for what is no positive power of two (`stages`, `strip`: for what is not positive).
    """

    columns: int
    depth: int = 64
    stages: int = 4
    strip: int = 8
    warps: int = 8

    def __post_init__(self):
        for name, value in asdict(self).items():
            whole = type(value) is int and value > 0
            if not whole or (name not in ("stages", "strip") and value & (value - 1)):
                raise ValueError(f"{name} is {value!r}; it must be a positive power of two")


@dataclass(frozen=True, kw_only=True)
class Key:
    """What a choice of tiles is for: kernels, product, widths K and M, experts E."""

    kernels: str
    product: Product
    contracted: int
    width: int
    experts: int

    @property
    def text(self) -> str:
        """The key in the file, for the card at hand."""
        sizes = f"{self.contracted}x{self.width}x{self.experts}"
        return "/".join((jax.devices()[0].device_kind, self.kernels, self.product, sizes))


DEFAULTS: dict[tuple[str, Product], Blocks] = {
    ("mosaic", "plain"): Blocks(columns=256, strip=8),
    ("mosaic", "transposed"): Blocks(columns=256, strip=8),
    ("mosaic", "swiglu"): Blocks(columns=256, strip=4),
    ("mosaic", "weights"): Blocks(columns=256, strip=16),
    ("triton", "plain"): Blocks(columns=128, depth=32),
    ("triton", "transposed"): Blocks(columns=128, depth=32),
    ("triton", "swiglu"): Blocks(columns=128, depth=32),
    ("triton", "weights"): Blocks(columns=128, depth=32),
}
# measured on an H200
WIDE = Blocks(columns=256, depth=64, stages=3)


def _key(product: Product, contracted: int, width: int, experts: int) -> Key:
    return Key(
        kernels="mosaic", product=product, contracted=contracted, width=width, experts=experts
    )


TABLE: dict[Key, Blocks] = {
    _key("swiglu", 2048, 1024, 64): Blocks(columns=256, strip=8),
    _key("weights", 4096, 14336, 8): Blocks(columns=256, strip=2),
    _key("weights", 14336, 4096, 8): Blocks(columns=256, strip=8),
}
MOSAIC_CANDIDATES = tuple(
    Blocks(columns=columns, stages=stages, strip=strip)
    for columns, stages in ((256, 4), (128, 6))
    for strip in (2, 4, 8, 16)
)
TRITON_CANDIDATES = tuple(
    Blocks(columns=columns, depth=depth, stages=stages, warps=warps)
    for columns, warps in ((128, 4), (128, 8), (256, 8))
    for depth, stages in ((32, 3), (32, 4), (64, 3), (64, 4))
)


def candidates(kernels: str) -> tuple[Blocks, ...]:
    """What a tuner tries; which of them a card has room for is found out by trying."""
    return MOSAIC_CANDIDATES if kernels == "mosaic" else TRITON_CANDIDATES


def lookup(key: Key) -> Blocks:
    """The tiles for a product: by the file, else the table, else the kernels' default."""
    path = file_path()
    try:
        stamp = path.stat().st_mtime_ns
    except OSError:
        stamp = None
    found = _read(path, stamp).get(key.text) if stamp is not None else None
    if found is None and key.kernels == "triton" and _hopper():
        return WIDE
    return found or TABLE.get(key) or DEFAULTS[key.kernels, key.product]


def _hopper() -> bool:
    """Whether a program has room for WIDE, 144 KiB; GPUs with less, or not measured, have not."""
    return getattr(jax.devices()[0], "compute_capability", None) == "9.0"


def file_path() -> Path:
    """Where the tuner's file lies."""
    folder = os.environ.get("MOEJAX_CACHE")
    if folder:
        return Path(folder) / FILE
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "moejax" / FILE


def store(found: Mapping[Key, Blocks]) -> Path:
    """Add to the file, or start it, in one step; what cannot be read there is lost. The path."""
    path = file_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = _parse(path)[0] | {key.text: blocks for key, blocks in found.items()}
    text = json.dumps({name: asdict(blocks) for name, blocks in sorted(entries.items())}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text + "\n")
    os.replace(file.name, path)
    return path


@cache
def _read(path: Path, stamp: int) -> dict[str, Blocks]:
    """The file's entries; one warning for each state of a file that is not as it should be."""
    del stamp
    entries, faults = _parse(path)
    if faults:
        warnings.warn(
            f"{path} is ignored where it is no table of tiles ({faults[0]}); delete it, or run"
            " `moejax bench gpu --tune` to write it anew",
            RuntimeWarning,
            stacklevel=2,
        )
    return entries


def _parse(path: Path) -> tuple[dict[str, Blocks], list[str]]:
    """(Entries of a file that make sense, what is wrong with the rest)."""
    try:
        content: Any = json.loads(path.read_text())
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError) as error:
        return {}, [str(error)]
    if not isinstance(content, dict):
        return {}, [f"it holds a {type(content).__name__}, not a dictionary"]
    entries, faults = {}, []
    for name, fields in content.items():
        try:
            entries[name] = Blocks(**fields)
        except (TypeError, ValueError) as error:
            faults.append(f"{name}: {error}")
    return entries, faults
