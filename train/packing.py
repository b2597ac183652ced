"""Documents packed into rows of tokens: bytes, with a mark before and after each document.

Documents lie end to end in one stream that is cut into rows of S tokens, so that no place of a row
is wasted; what is left of a document opens the next row. Within a row attention stays inside a
document, and positions count from its first token there. The mark between two documents is the
end that the first one's last byte predicts, and the beginning that predicts the second one's first
byte; so every byte and every end is predicted exactly once. Axes: B rows, S tokens of a row.
"""

import hashlib
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from moejax.interop.tokenizer import ByteTokenizer
from moejax.models.moe_lm import IGNORED
from train.data import PARTS, Part
from train.text import Corpus, TextConfig

BEGIN, (END,), FILL = ByteTokenizer.bos_id, ByteTokenizer.eos_ids, ByteTokenizer.pad_id
MARK = BEGIN  # what the stream holds between documents


@partial(
    jax.tree_util.register_dataclass, data_fields=["ids", "targets", "segments"], meta_fields=[]
)
@dataclass(frozen=True)
class Rows:
    """ids int32 [B, S]; targets int32 [B, S], the next token or IGNORED; segments int32 [B, S],
    which number the documents of a row from 1 (0: no token).
    """

    ids: jax.Array
    targets: jax.Array
    segments: jax.Array


@dataclass(frozen=True, kw_only=True)
class PackedText:
    """A corpus ready for training: one stream of tokens (uint16), and where rows begin in it."""

    corpus: Corpus
    tokens: np.ndarray
    starts: dict[Part, np.ndarray]
    seq_len: int

    @property
    def source(self) -> str:
        """Where the text comes from."""
        return self.corpus.source

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of scores must know."""
        return self.corpus.notes

    def describe(self) -> str:
        """Where the data comes from and how much there is, in a line."""
        sizes = ", ".join(
            f"{self.corpus.num_bytes(part)} bytes of {len(self.corpus.parts[part])} documents"
            f" {part}"
            for part in PARTS
        )
        return f"data: {self.source}; {sizes}"

    def fingerprint(self) -> str:
        """sha256 of the tokens and of where the parts begin."""
        digest = hashlib.sha256(self.tokens.tobytes())
        for part in PARTS:
            digest.update(self.starts[part].tobytes())
        return digest.hexdigest()


def pack(corpus: Corpus, config: TextConfig) -> PackedText:
    """Tokens of all parts, each padded with FILL to whole rows and the one token behind them."""
    streams, starts, offset = [], {}, 0
    for part in PARTS:
        stream = _stream(corpus.parts[part])
        rows = -(-(len(stream) - 1) // config.seq_len)
        padded = np.full(rows * config.seq_len + 1, FILL, np.uint16)
        padded[: len(stream)] = stream
        starts[part] = (offset + np.arange(rows) * config.seq_len).astype(np.int32)
        streams.append(padded)
        offset += len(padded)
    if offset >= 2**31:
        raise ValueError(f"the text has {offset} tokens; fewer than 2**31 fit one run")
    return PackedText(
        corpus=corpus, tokens=np.concatenate(streams), starts=starts, seq_len=config.seq_len
    )


def cut_rows(tokens: jax.Array, starts_B: jax.Array, seq_len: int) -> Rows:
    """The rows that begin at these places of the stream, inside jit."""
    one = partial(jax.lax.dynamic_slice_in_dim, tokens, slice_size=seq_len + 1)
    stretch = jax.vmap(one)(starts_B).astype(jnp.int32)
    found, targets = stretch[:, :-1], stretch[:, 1:]
    real = targets != FILL
    segments = 1 + jnp.cumsum(found[:, 1:] == MARK, axis=1)
    segments = jnp.pad(segments, ((0, 0), (1, 0)), constant_values=1)
    ends = jnp.where(targets == MARK, END, targets)
    return Rows(
        ids=jnp.where(real, found, FILL),
        targets=jnp.where(real, ends, IGNORED),
        segments=jnp.where(real, segments, 0),
    )


def _stream(documents: tuple[bytes, ...]) -> np.ndarray:
    mark = np.array([MARK], np.uint16)
    pieces = [mark]
    for text in documents:
        pieces += [np.frombuffer(text, np.uint8).astype(np.uint16), mark]
    return np.concatenate(pieces)
