"""Series as the tokens of a Chronos program: divided by their mean size, then bins. Numpy only."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bins:
    """`boundaries` [K + 1] and `centers` [K] of the bins, float32, and the special tokens.

    Behind `special` others, a token stands for what lies below every bin, then one for each bin in
    order. `end` None: contexts have no end token.
    """

    boundaries: np.ndarray
    centers: np.ndarray
    special: int
    pad: int
    end: int | None

    def context(self, values_BL: np.ndarray, length: int):
        """(ids int32 [B, length], mask bool: a value or the end, scale float32 [B]).

        NaN is a missing value; padding is in front. The scale is the mean of what is there, 1 where
        that is 0.
        """
        values_BL = np.asarray(values_BL, np.float32)
        mask_BL = ~np.isnan(values_BL)
        scale_B = _mean_size(values_BL, mask_BL)
        ids_BL = np.where(mask_BL, self._ids(values_BL / scale_B[:, None]), self.pad)
        if self.end is not None:
            ends = (len(ids_BL), 1)
            ids_BL = np.concatenate([ids_BL, np.full(ends, self.end)], axis=1)
            mask_BL = np.concatenate([mask_BL, np.ones(ends, bool)], axis=1)
        front = ((0, 0), (length - ids_BL.shape[1], 0))
        ids_BL = np.pad(ids_BL, front, constant_values=self.pad).astype(np.int32)
        return ids_BL, np.pad(mask_BL, front), scale_B

    def values(self, ids: np.ndarray, scale_B: np.ndarray) -> np.ndarray:
        """float32: the centers of the bins of tokens [B, ...], times the scale."""
        index = np.clip(ids - self.special - 1, 0, len(self.centers) - 1)
        return self.centers[index] * scale_B.reshape(-1, *(1,) * (ids.ndim - 1))

    def _ids(self, scaled_BL: np.ndarray) -> np.ndarray:
        ids_BL = np.searchsorted(self.boundaries, scaled_BL, side="right") + self.special
        return np.clip(ids_BL, 0, self.special + len(self.centers))


def _mean_size(values_BL: np.ndarray, mask_BL: np.ndarray) -> np.ndarray:
    total_B = np.where(mask_BL, np.abs(values_BL), 0).sum(axis=1, dtype=np.float64)
    mean_B = (total_B / np.maximum(mask_BL.sum(axis=1), 1)).astype(np.float32)
    return np.where(mean_B > 0, mean_B, np.float32(1))
