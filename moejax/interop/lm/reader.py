"""Fill our arrays from a checkpoint, a few published rows at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from moejax.interop.checkpoint import Checkpoint
from moejax.interop.lm.fit import Source

Sharding = jax.sharding.Sharding
Progress = Callable[[int, int], None]

# Read at a time: what is held beside the arrays themselves.
_CHUNK_BYTES = 4 << 20
# XLA on CPU takes over a numpy array as it lies, without a copy, if its address is a multiple.
_ALIGNMENT = 64


class Reader:
    """Reads arrays, reports the bytes read, and remembers tensors that hold NaN or infinity."""

    def __init__(self, checkpoint: Checkpoint, wanted: Iterable[Source], progress: Progress | None):
        names = {name for source in wanted for name in source.layout.names}
        self.checkpoint = checkpoint
        self.progress = progress
        self.total = sum(checkpoint.tensors[name].size for name in names)
        self.done = 0
        self.broken: set[str] = set()

    def array(self, source: Source, dtype: np.dtype, sharding: Sharding | None) -> jax.Array:
        """One of our arrays, on the devices that the sharding says; equal parts are read once."""
        whole = tuple(map(range, source.shape))
        if sharding is None:
            return jax.device_put(self._part(source, dtype, whole))
        parts: dict[Any, np.ndarray] = {}

        def part(index: Any) -> np.ndarray:
            spans = tuple(span[one] for span, one in zip(whole, index, strict=True))
            if spans not in parts:
                parts[spans] = self._part(source, dtype, spans)
            return parts[spans]

        return jax.make_array_from_callback(source.shape, sharding, part)

    def _part(self, source: Source, dtype: np.dtype, spans: tuple[range, ...]) -> np.ndarray:
        """The entries of an array in these spans of its axes."""
        out = _aligned(tuple(map(len, spans)), dtype)
        for name, matrix, target in _matrices(source, spans, out):
            rows, columns = spans[-1], spans[-2:-1]
            if source.transposed:
                target = target.T
            elif len(source.shape) > 1:
                rows, columns = spans[0], spans[1:]
            self._fill(target, name, matrix, rows, columns, _shift(source))
        return out

    def _fill(self, target, name: str, matrix: int, rows: range, columns, shift: int) -> None:
        """target = rows (all `shift` further on) and columns of a published matrix."""
        step = self.checkpoint.chunk(name, _CHUNK_BYTES)
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            piece = self.checkpoint.rows(name, start + shift, stop + shift, matrix)
            for span in columns:
                piece = piece[:, span.start : span.stop]
            if not np.isfinite(piece).all():
                self.broken.add(name)
            target[start - rows.start : stop - rows.start] = piece
            self.done += piece.size * self.checkpoint.item_size(name)
            if self.progress is not None:
                self.progress(self.done, self.total)


def _matrices(
    source: Source, spans: tuple[range, ...], out: np.ndarray
) -> Iterator[tuple[str, int, np.ndarray]]:
    """The published matrices that a part needs: name, which of its stack, where it goes."""
    names = source.layout.names
    if len(source.shape) < 3:
        yield names[0], 0, out
        return
    for place, expert in enumerate(spans[0]):
        if source.layout.each:
            yield names[expert], 0, out[place]
        else:
            yield names[0], expert, out[place]


def _shift(source: Source) -> int:
    """How many rows of a published matrix come before the half that is meant."""
    return source.shape[-1] if source.layout.half else 0


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that JAX need not copy."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
