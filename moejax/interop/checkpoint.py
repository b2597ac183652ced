"""The tensors of a checkpoint folder: what there is, and rows of it without loading the rest.

A file is mapped a piece at a time and let go of again, so that the process never holds more of it
than that piece: of a mapping of the whole file every page that was read counts.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    (FLOAT8 := "F8_E4M3"): np.dtype(ml_dtypes.float8_e4m3fn),
}
INDEX = "model.safetensors.index.json"
# float8 weights have a tensor of scales beside them, one a block of so many rows and columns.
SCALE = "_scale_inv"
BLOCK = (128, 128)
_MOST_NAMES = 20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `offset` and `size` in bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Checkpoint:
    """The tensors of a folder by name: those of one file, or of the files that an index names.

    ValueError for a folder without any, for pickles, a damaged file, an unknown quantisation.
    """

    def __init__(self, folder: Path, quantisation: Mapping[str, Any] | None = None):
        self.folder = folder
        self.block = _block(quantisation)
        self.tensors: dict[str, Stored] = {}
        for path in weight_files(folder):
            self.tensors |= dict(_contents(path))

    def rows(self, name: str, start: int, stop: int, matrix: int = 0) -> np.ndarray:
        """Rows start..stop-1 of a vector or matrix, or of one matrix of a stack.

        In the stored dtype; float8 weights come multiplied by their scales, in float32.
        """
        stored = self.tensors[name]
        dtype = DTYPES[stored.dtype]
        *_, num_rows, width = (0, 0, *stored.shape)
        tail = (width,) if len(stored.shape) > 1 else ()
        row = dtype.itemsize * int(np.prod(tail))
        first = start + matrix * (num_rows if tail else 0)
        found = np.memmap(
            stored.path, dtype, "r", stored.offset + first * row, (stop - start, *tail)
        )
        if stored.dtype != FLOAT8:
            return found
        scale = self.tensors[name + SCALE]
        scales = np.memmap(scale.path, DTYPES[scale.dtype], "r", scale.offset, scale.shape)
        row_blocks, column_blocks = (
            np.arange(low, high) // size
            for low, high, size in zip((start, 0), (stop, *tail), self.block, strict=True)
        )
        return found.astype(np.float32) * scales[row_blocks][:, column_blocks]

    def require(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        spare: Callable[[str], bool] = lambda name: False,
        *,
        float8: bool = False,
    ) -> None:
        """ValueError that lists the tensors that are missing, unknown, of another shape or dtype.

        `shapes`: of those that a model needs; `spare(name)`: whether another may be there as well;
        `float8`: whether the caller reads float8 weights, which need their scales.
        """
        used = {name: self.tensors[name] for name in shapes if name in self.tensors}
        kinds = [kind for kind in DTYPES if float8 or kind != FLOAT8]
        scales = {
            name + SCALE for name, stored in used.items() if float8 and stored.dtype == FLOAT8
        }
        others = self.tensors.keys() - shapes.keys() - scales
        problems = {
            "missing": (shapes.keys() | scales) - self.tensors.keys(),
            "unknown": {name for name in others if not spare(name)},
            "of another shape": {
                f"{name} has {stored.shape}, the config needs {shapes[name]}"
                for name, stored in used.items()
                if stored.shape != shapes[name]
            },
            "of another kind": {
                f"{name} is {stored.dtype}; {', '.join(kinds)} can be read"
                for name, stored in used.items()
                if stored.dtype not in kinds
            },
        }
        found = [f"{kind}: {listed(names)}" for kind, names in problems.items() if names]
        if found:
            raise ValueError(
                f"the tensors of {self.folder} do not fit its config.json. {'; '.join(found)}"
            )

    def require_finite(self, broken: set[str]) -> None:
        """ValueError that lists the tensors which a reader found `broken`, if there are any."""
        if broken:
            raise ValueError(f"weights of {self.folder} are NaN or infinite: {listed(broken)}")

    def item_size(self, name: str) -> int:
        """Bytes of an entry."""
        return DTYPES[self.tensors[name].dtype].itemsize

    def chunk(self, name: str, most_bytes: int) -> int:
        """How many rows make up at most so many bytes; at least 1."""
        stored = self.tensors[name]
        num_rows = int(np.prod(stored.shape[:-1] or stored.shape))
        return max(most_bytes * num_rows // max(stored.size, 1), 1)


def listed(names: set[str]) -> str:
    """The names in order, as many as a message can hold."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(sorted(names)[:_MOST_NAMES]) + more


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights."""
    if (folder / INDEX).is_file():
        try:
            names = set(
                json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{folder / INDEX} is no index of tensors: {error!r}") from error
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names")
        return [folder / name for name in sorted(names)]
    found = [folder / "model.safetensors"] if (folder / "model.safetensors").is_file() else []
    found = found or sorted(folder.glob("model-*-of-*.safetensors"))
    if found:
        return found
    pickles = sorted(path.name for kind in _PICKLES for path in folder.glob(kind))
    if pickles:
        raise ValueError(
            f"{folder} holds {', '.join(pickles)}: pickles can run any code when they are opened,"
            " so they are not. Convert them where you trust them, with"
            " model.save_pretrained(FOLDER, safe_serialization=True) of transformers"
        )
    raise ValueError(f"{folder} holds neither model.safetensors nor {INDEX}")


def _contents(path: Path) -> Iterator[tuple[str, Stored]]:
    """Name and place of each tensor of a file; ValueError if it is damaged."""
    try:
        with safe_open(path, "np"):  # checks the header against the length of the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}); fetch or write it again"
        ) from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        yield (
            name,
            Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + start, stop - start),
        )


def _block(quantisation: Mapping[str, Any] | None) -> tuple[int, int]:
    if not quantisation:
        return BLOCK
    if quantisation.get("quant_method") != "fp8":
        raise ValueError(
            f"config.json: quantization_config has quant_method"
            f" {quantisation.get('quant_method')!r}; of quantised weights only 'fp8' can be read"
        )
    rows, columns = quantisation.get("weight_block_size") or BLOCK
    return rows, columns
