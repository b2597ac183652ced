"""Series as tokens by scaling with the mean and uniform bins; numpy alone.

B series, L values of the longest, K bins. Ids below `n_special_tokens` are special; then one for
what lies below every bin, and the bins in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from moejax.forecasting.chronos.cascade import row_sums
from moejax.models.chronos_config import ChronosConfig

_FARTHEST = np.float32(1e20)


@lru_cache(maxsize=8)
def bin_centers(low: float, high: float, count: int) -> np.ndarray:
    """float32 [K], evenly from low to high: steps from either end up to the middle.

    Every entry is rounded once, so that it is the float32 number that torch.linspace gives.
    """
    step = np.float64(np.float32((high - low) / (count - 1)))
    index = np.arange(count)
    up, down = low + step * index, high - step * (count - 1 - index)
    centers = np.where(index < count // 2, up, down).astype(np.float32)
    centers.setflags(write=False)
    return centers


@lru_cache(maxsize=8)
def bin_boundaries(low: float, high: float, count: int) -> np.ndarray:
    """float32 [K + 1]: -1e20, the middles between centers, 1e20."""
    centers = bin_centers(low, high, count)
    middles = (centers[1:] + centers[:-1]) / np.float32(2)
    boundaries = np.concatenate([[-_FARTHEST], middles, [_FARTHEST]]).astype(np.float32)
    boundaries.setflags(write=False)
    return boundaries


@dataclass(frozen=True)
class Tokens:
    """ids int32 [B, L], mask bool [B, L] (true: a value or the end), scale float32 [B]."""

    ids: np.ndarray
    mask: np.ndarray
    scale: np.ndarray


class MeanScaleUniformBins:
    """The published tokenizer of a config."""

    def __init__(self, config: ChronosConfig):
        self.config = config
        low, high = (float(config.tokenizer_kwargs[f"{end}_limit"]) for end in ("low", "high"))
        if not low < high:
            raise ValueError(f"low_limit is {low}; it must be below high_limit, which is {high}")
        count = config.n_tokens - config.n_special_tokens - 1
        self.centers = bin_centers(low, high, count)
        self.boundaries = bin_boundaries(low, high, count)

    def context(self, values_BL: np.ndarray) -> Tokens:
        """The last `context_length` values as tokens, NaN a missing one; then the end, if any."""
        values_BL = np.asarray(values_BL, np.float32)[:, -self.config.context_length :]
        tokens = self._tokens(values_BL, mean_scale(values_BL))
        ends = self.config.use_eos_token and self.config.model_type == "seq2seq"
        return self._ended(tokens) if ends else tokens

    def label(self, values_BP: np.ndarray, scale_B: np.ndarray) -> Tokens:
        """Values of the forecast as tokens, by the context's scale.

        ValueError if there are not `prediction_length`.
        """
        values_BP = np.asarray(values_BP, np.float32)
        if values_BP.shape[1] != self.config.prediction_length:
            raise ValueError(
                f"there are {values_BP.shape[1]} steps to predict; the model is for"
                f" {self.config.prediction_length}"
            )
        tokens = self._tokens(values_BP, np.asarray(scale_B, np.float32))
        return self._ended(tokens) if self.config.use_eos_token else tokens

    def decode(self, ids: np.ndarray, scale_B: np.ndarray) -> np.ndarray:
        """float32 values of ids [B, ...]: the centers of their bins, times the scale.

        Special ids become the lowest center.
        """
        index = np.asarray(ids, np.int64) - self.config.n_special_tokens - 1
        scale = np.asarray(scale_B, np.float32).reshape(-1, *(1,) * (index.ndim - 1))
        return self.centers[np.clip(index, 0, len(self.centers) - 1)] * scale

    def ids(self, values_BL: np.ndarray, scale_B: np.ndarray) -> np.ndarray:
        """int32 [B, L]: the bins of values over their scale; special ids are for others."""
        with np.errstate(over="ignore", invalid="ignore"):
            scaled_BL = values_BL / scale_B[:, None]
        ids_BL = np.searchsorted(self.boundaries, scaled_BL, side="right")
        ids_BL = ids_BL + self.config.n_special_tokens
        return np.clip(ids_BL, 0, self.config.n_tokens - 1).astype(np.int32)

    def _tokens(self, values_BL: np.ndarray, scale_B: np.ndarray) -> Tokens:
        mask_BL = ~np.isnan(values_BL)
        ids_BL = np.where(mask_BL, self.ids(values_BL, scale_B), self.config.pad_token_id)
        return Tokens(ids_BL.astype(np.int32), mask_BL, scale_B)

    def _ended(self, tokens: Tokens) -> Tokens:
        rows = len(tokens.ids), 1
        end = np.full(rows, self.config.eos_token_id, np.int32)
        ids = np.concatenate([tokens.ids, end], axis=1)
        mask = np.concatenate([tokens.mask, np.ones(rows, bool)], axis=1)
        return Tokens(ids, mask, tokens.scale)


def mean_scale(values_BL: np.ndarray) -> np.ndarray:
    """float32 [B]: mean of |x| over what is there; 1 where that is 0 or nothing is there."""
    mask_BL = ~np.isnan(values_BL)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        sizes_BL = np.where(mask_BL, np.abs(values_BL), np.float32(0))
        mean_B = row_sums(sizes_BL) / mask_BL.sum(axis=1).astype(np.float32)
    return np.where(mean_B > 0, mean_B, 1).astype(np.float32)


def stack_left(series: Sequence[np.ndarray]) -> np.ndarray:
    """Series [L] of any lengths as rows of the longest, NaN in front of the others: float32."""
    longest = max(len(one) for one in series)
    rows = np.full((len(series), longest), np.nan, np.float32)
    for row, one in zip(rows, series, strict=True):
        row[longest - len(one) :] = one
    return rows
