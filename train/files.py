"""Files that are replaced as a whole, and what a full disk says."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from train.errors import TrainError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("no space left", "resource_exhausted", "disk quota")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that the disk or quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(text in str(error).lower() for text in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def explained(path: Path, kept: str) -> Iterator[None]:
    """TrainError for an OSError on writing `path`; `kept` says what is safe."""
    try:
        yield
    except OSError as error:
        reason = "no space left on the disk" if is_disk_full(error) else str(error)
        raise TrainError(
            f"cannot write {path}: {reason}. {kept}; correct the cause and run the same command "
            "again"
        ) from error


@contextlib.contextmanager
def replacing(path: Path, kept: str) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the place of `path` when the block ends well."""
    partial = path.with_name(f".{path.name}.writing")
    with explained(path, kept):
        try:
            with partial.open("wb") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
