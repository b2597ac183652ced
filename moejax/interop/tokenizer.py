"""Text to token ids and back: a checkpoint's tokenizer.json, or bytes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """What generation needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the tokens that a model expects in front of it."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255, then bos, eos and pad."""

    vocab_size = 259
    bos_id = 256
    eos_ids = (257,)
    pad_id = 258

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one < 256).decode(errors="replace")


class JsonTokenizer:
    """The tokenizer of a checkpoint folder: tokenizer.json, read by the `tokenizers` package.

    The beginning-of-sequence token is added where tokenizer.json or tokenizer_config.json says so.
    End tokens are those of generation_config.json, config.json and tokenizer_config.json.
    """

    def __init__(self, folder: Path | str):
        import tokenizers

        folder = Path(folder)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the package raises plain Exception
            raise ValueError(f"{folder / FILE} cannot be read as a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        settings = _read(folder / "tokenizer_config.json")
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._id_of(settings.get("bos_token"))
        self._add_bos = settings.get("add_bos_token") is True and self.bos_id is not None
        self.eos_ids = self._ends(folder, settings)

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text).ids
        if self._add_bos and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _id_of(self, token: Any) -> int | None:
        """A token as tokenizer_config.json writes it: text, or a dict with the text as content."""
        content = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(content) if isinstance(content, str) else None

    def _ends(self, folder: Path, settings: dict[str, Any]) -> tuple[int, ...]:
        found: list[Any] = [self._id_of(settings.get("eos_token"))]
        for name in ("generation_config.json", "config.json"):
            value = _read(folder / name).get("eos_token_id")
            found += value if isinstance(value, list) else [value]
        return tuple(dict.fromkeys(one for one in found if isinstance(one, int)))


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The folder's tokenizer.json, or bytes where it has none; ValueError for a damaged file."""
    return JsonTokenizer(folder) if (Path(folder) / FILE).is_file() else ByteTokenizer()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return found if isinstance(found, dict) else {}


class TextStream:
    """Ids in, text out, as soon as it is certain.

    Text that could still change is held back: half of a UTF-8 character, and what may be the
    beginning of a stop string. `stopped` is set once a stop string came; it and what follows are
    not given out.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        if any(not one for one in stop):
            raise ValueError("a stop string is empty; leave it out")
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._given = 0
        self.text, self.stopped = "", False

    def push(self, ids: Sequence[int]) -> str:
        """The new text that is certain after these ids."""
        if self.stopped:
            return ""
        self._ids.extend(ids)
        return self._advance(final=False)

    def finish(self) -> str:
        """What was held back."""
        return "" if self.stopped else self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        text = self._tokenizer.decode(self._ids)
        places = [place for one in self._stop if (place := text.find(one)) >= 0]
        if places:
            self.stopped, certain = True, min(places)
        else:
            certain = len(text) if final else self._certain(text)
        new = text[self._given : max(certain, self._given)]
        self._given += len(new)
        self.text += new
        return new

    def _certain(self, text: str) -> int:
        """Length of the text without an unfinished character and without a stop string's start."""
        text = text.rstrip("\ufffd") if text.endswith("\ufffd") else text
        held = (
            size
            for one in self._stop
            for size in range(min(len(one) - 1, len(text)), 0, -1)
            if text.endswith(one[:size])
        )
        return len(text) - max(held, default=0)
