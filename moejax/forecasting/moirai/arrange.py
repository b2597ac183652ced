"""Tokens of a window in the order that the sampling loop wants, with room on the left.

A step of the loop sees the tokens of the past and those of the forecast that are written already,
so the forecast's tokens go to the end, patch by patch: the loop takes a prefix. The past is cut or
filled up on the left to a number of patches from a short list; tokens of padding change nothing.
"""

import jax
import numpy as np

from moejax.forecasting.moirai.packing import Layout
from moejax.models.moirai_moe import Tokens

SMALLEST = 8


def bucket(patches: int) -> int:
    """The least number of patches of the list that holds so many: 8, then four to a doubling."""
    step = max(SMALLEST, 2 ** max((patches - 1).bit_length() - 3, 0))
    return -(-patches // step) * step


def needed_patches(tokens: Tokens, layout: Layout) -> np.ndarray:
    """For every row, patches of the past from the first that isn't padding in all variates [B]."""
    blocks = np.split(np.arange(layout.targets * layout.past), layout.targets)
    start = layout.targets * (layout.past + layout.future)
    for _ in range(layout.ahead):
        blocks.append(start + np.arange(layout.past))
        start += layout.past
    start += layout.ahead * layout.future
    for _ in range(layout.past_only):
        blocks.append(start + np.arange(layout.past))
        start += layout.past
    live_BVN = np.asarray(tokens.sample_id)[:, np.stack(blocks)] != 0
    live_BN = live_BVN.any(axis=1)
    return np.where(live_BN.any(axis=1), layout.past - live_BN.argmax(axis=1), 1)


def arrange(tokens: Tokens, layout: Layout, past: int) -> Tokens:
    """The tokens in the loop's order with `past` patches of past for each variate."""
    order_T = _order(layout, past)

    def pick(name: str) -> np.ndarray:
        values = np.asarray(getattr(tokens, name))[:, order_T]
        if name != "patch_size":
            values[:, order_T < 0] = 0
        return values

    return Tokens(**{name: pick(name) for name in vars(tokens)})


def _order(layout: Layout, past: int) -> np.ndarray:
    """Where each token of the loop's order comes from, -1: padding."""

    def cut(first: int) -> np.ndarray:
        """The past of one variate whose first token is `first`."""
        index = np.arange(layout.past - past, layout.past)
        return np.where(index < 0, -1, first + index)

    variates, patches, ahead = layout.targets, layout.past, layout.ahead
    parts = [cut(variate * patches) for variate in range(variates)]
    start = variates * (patches + layout.future)
    parts += [cut(start + variate * patches) for variate in range(ahead)]
    start += ahead * patches
    parts.append(np.arange(start, start + ahead * layout.future))
    start += ahead * layout.future
    parts += [cut(start + variate * patches) for variate in range(layout.past_only)]
    future_VM = layout.first_future + np.arange(variates * layout.future).reshape(variates, -1)
    return np.concatenate([*parts, future_VM.T.reshape(-1)])


def known_tokens(layout: Layout, past: int) -> int:
    """Tokens in front of the forecast's."""
    covariates = layout.ahead + layout.past_only
    return (layout.targets + covariates) * past + layout.ahead * layout.future


def leading(tokens: Tokens, count: int) -> Tokens:
    """The first tokens of each row."""
    return jax.tree.map(lambda leaf: leaf[:, :count], tokens)
