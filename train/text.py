"""Text for language models: documents from files, split into parts by name, as bytes.

Without a file of the user's the text is the source code of Python's own standard library, which
every machine has. Its scores depend on the Python version, which the notes name.
"""

import glob
import hashlib
import json
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from train.data import PARTS, Part

# not the library's own code: tests, packages installed by the user, and pydoc_data, which holds
# the text of the manual
FOREIGN = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"})


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text, in rows of `seq_len` bytes, and the shares of documents kept from training.

    `text`: a file or glob pattern; empty: the Python standard library. A file is a document; in
    files that end in .jsonl each line is one, under the key `field`.
    """

    text: str = ""
    field: str = "text"
    seq_len: int = 256
    val_share: float = 0.04
    test_share: float = 0.04

    def __post_init__(self) -> None:
        if self.seq_len < 2:
            raise ValueError(f"data.seq_len is {self.seq_len}; it must be >= 2")
        shares = self.val_share, self.test_share
        if min(shares) <= 0 or sum(shares) >= 1:
            raise ValueError(
                f"data.val_share is {shares[0]} and data.test_share {shares[1]}; each must be above"
                " 0, and their sum below 1"
            )


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text and the name that decides its part."""

    name: str
    text: bytes


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents by part, in a fixed order; `notes` says what a reader of scores must know."""

    source: str
    parts: dict[Part, tuple[bytes, ...]]
    notes: tuple[str, ...] = ()

    def num_bytes(self, part: Part) -> int:
        """Bytes of the documents of a part."""
        return sum(map(len, self.parts[part]))


def load_corpus(config: TextConfig) -> Corpus:
    """Read and split the text; ValueError for every problem with the files."""
    source = config.text or f"the standard library of Python {platform.python_version()}"
    found = _user_documents(config) if config.text else _standard_library()
    documents = [one for one in found if one.text.strip()]
    if not documents:
        raise ValueError(f"{source} holds no text; see data.text")
    parts: dict[Part, tuple[bytes, ...]] = {
        part: tuple(one.text for one in documents if _part(one, config) == part) for part in PARTS
    }
    notes = []
    if not all(parts.values()):
        # too few documents to set some aside: the ends of each of them are
        parts = _cut(documents, config)
        notes.append(
            f"{len(documents)} documents are too few to split by name: the ends of each"
            " are the val and test parts"
        )
    if not config.text:
        size = sum(len(one.text) for one in documents)
        notes.append(
            f"scores hold for these {size} bytes of {len(documents)} files of Python"
            f" {platform.python_version()}"
        )
    return Corpus(source=source, parts=parts, notes=tuple(notes))


def _standard_library() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    for name in names:
        if FOREIGN.isdisjoint(name.split("/")):
            yield Document(name=name, text=(root / name).read_bytes())


def _user_documents(config: TextConfig) -> Iterator[Document]:
    paths = sorted(
        path for path in map(Path, glob.glob(config.text, recursive=True)) if path.is_file()
    )
    if not paths:
        raise ValueError(
            f"data.text is {config.text!r}, which is no file and matches none; give a file, or a"
            " pattern in quotes such as 'notes/**/*.txt'"
        )
    for path in paths:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if path.suffix == ".jsonl":
            yield from _lines(path, text, config.field)
        else:
            yield Document(name=path.as_posix(), text=text)


def _lines(path: Path, text: bytes, field: str) -> Iterator[Document]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get(field), str):
            keys = f"keys {', '.join(found)}" if isinstance(found, dict) else "no object"
            raise ValueError(
                f"line {number} of {path} has no text under {field!r} ({keys}); name the key with"
                " --set data.field=KEY"
            )
        yield Document(name=f"{path.as_posix()}:{number}", text=found[field].encode())


def _part(document: Document, config: TextConfig) -> Part:
    """By the hash of the name: a document stays in its part when others come or go."""
    digest = hashlib.sha256(document.name.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < config.val_share:
        return "val"
    return "test" if place < config.val_share + config.test_share else "train"


def _cut(documents: list[Document], config: TextConfig) -> dict[Part, tuple[bytes, ...]]:
    pieces: dict[Part, list[bytes]] = {part: [] for part in PARTS}
    for one in documents:
        size = len(one.text)
        test = size - int(size * config.test_share)
        val = test - int(size * config.val_share)
        for part, piece in zip(
            PARTS, (one.text[:val], one.text[val:test], one.text[test:]), strict=True
        ):
            if piece:
                pieces[part].append(piece)
    return {part: tuple(found) for part, found in pieces.items()}
