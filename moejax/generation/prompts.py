"""Prompts as rectangles: checked, padded on the left to a length from a short list."""

from collections.abc import Sequence

import jax
import numpy as np

Prompts = Sequence[Sequence[int]] | np.ndarray | jax.Array
SMALLEST = 16


def bucket(length: int) -> int:
    """The least length of the list that holds `length`: 16, then four steps to each doubling."""
    step = max(SMALLEST, 2 ** max((length - 1).bit_length() - 3, 0))
    return -(-length // step) * step


def pad_left(
    prompts: Prompts, mask: np.ndarray | None, vocab_size: int, max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [B, S], mask bool [B, S]) with the tokens at the right end and S from the list.

    ValueError for no prompt, an empty one, one that leaves no room in the context, an unknown id
    or a mask of another shape.
    """
    rows = _rows(prompts, mask)
    if not rows:
        raise ValueError("there is no prompt")
    for number, row in enumerate(rows):
        _check(row, f"prompt {number}" if len(rows) > 1 else "the prompt", vocab_size, max_len)
    num_steps = bucket(max(len(row) for row in rows))
    ids_BS = np.zeros((len(rows), num_steps), np.int32)
    mask_BS = np.zeros((len(rows), num_steps), bool)
    for number, row in enumerate(rows):
        ids_BS[number, num_steps - len(row) :] = row
        mask_BS[number, num_steps - len(row) :] = True
    return ids_BS, mask_BS


def row_keys(seed: int, ids_BS: np.ndarray, mask_BS: np.ndarray) -> jax.Array:
    """A random key for each row [B]: by the seed, and by how many equal prompts came before."""
    counts: dict[bytes, int] = {}
    numbers = []
    for ids_S, mask_S in zip(ids_BS, mask_BS, strict=True):
        prompt = ids_S[mask_S].tobytes()
        numbers.append(counts.setdefault(prompt, 0))
        counts[prompt] += 1
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return fold(jax.random.key(seed), np.asarray(numbers, np.uint32))


def _rows(prompts: Prompts, mask: np.ndarray | None) -> list[np.ndarray]:
    if mask is None:
        return [np.asarray(row) for row in prompts]
    ids_BS, mask_BS = np.asarray(prompts), np.asarray(mask)
    if ids_BS.ndim != 2 or mask_BS.shape != ids_BS.shape:
        raise ValueError(
            f"mask has shape {mask_BS.shape}, the prompts have {ids_BS.shape}; both must be [B, S]"
        )
    return [row[keep] for row, keep in zip(ids_BS, mask_BS.astype(bool), strict=True)]


def _check(row: np.ndarray, name: str, vocab_size: int, max_len: int) -> None:
    if row.ndim != 1:
        raise ValueError(f"{name} has shape {row.shape}; prompts are lists of token ids")
    if not len(row):
        raise ValueError(f"{name} is empty; give at least one token")
    if not np.issubdtype(row.dtype, np.integer):
        raise ValueError(f"{name} holds {row.dtype}; token ids are whole numbers")
    if len(row) >= max_len:
        raise ValueError(
            f"{name} has {len(row)} tokens; the context holds {max_len} with at least one new one,"
            f" so give at most {max_len - 1}"
        )
    if row.min() < 0 or row.max() >= vocab_size:
        bad = int(row[(row < 0) | (row >= vocab_size)][0])
        raise ValueError(f"{name} holds the token id {bad}; ids run from 0 to {vocab_size - 1}")
