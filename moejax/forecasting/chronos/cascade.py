"""Sums of float32 rows in the order of the published code's library, so that they agree to the bit.

Bins decide by the last bit of a scale. The order is that of torch on processors with registers of
eight numbers: four registers side by side, each summed up in levels of 16 or more.
"""

import numpy as np

LANES, SIDE_BY_SIDE, LEVELS = 8, 4, 4


def row_sums(values_BL: np.ndarray) -> np.ndarray:
    """float32 [B]: sums over the last axis."""
    lanes = LANES if values_BL.shape[1] >= LANES else 1
    count = values_BL.shape[1] // lanes * lanes
    total_BW = _registers(values_BL[:, :count].reshape(len(values_BL), -1, lanes))
    if lanes == 1:
        return total_BW[:, 0]
    return _in_order(np.concatenate([values_BL[:, count:], total_BW], axis=1))


def _registers(values_BRW: np.ndarray) -> np.ndarray:
    """[B, W]: sums over the registers R."""
    whole = values_BRW.shape[1] // SIDE_BY_SIDE
    first = values_BRW[:, : whole * SIDE_BY_SIDE]
    shape = len(first), whole, SIDE_BY_SIDE, first.shape[-1]
    sums_B4W = _levels(first.reshape(shape))
    total_BW = sums_B4W[:, 0]
    for rest_BW in (
        *values_BRW[:, whole * SIDE_BY_SIDE :].swapaxes(0, 1),
        *sums_B4W[:, 1:].swapaxes(0, 1),
    ):
        total_BW = total_BW + rest_BW
    return total_BW


def _levels(values_BN4W: np.ndarray) -> np.ndarray:
    """[B, 4, W]: sums over N, the level above taking over what a level has added up."""
    count = values_BN4W.shape[1]
    power = max(4, max(count - 1, 0).bit_length() // LEVELS)
    zero = np.zeros((len(values_BN4W), *values_BN4W.shape[2:]), values_BN4W.dtype)
    sums = [zero] * LEVELS
    for index in range(count):
        sums[0] = sums[0] + values_BN4W[:, index]
        done = index + 1
        if done % (1 << power):
            continue
        for level in range(1, LEVELS):
            sums[level] = sums[level] + sums[level - 1]
            sums[level - 1] = zero
            if done & (((1 << power) - 1) << (level * power)):
                break
    total = sums[0]
    for level in sums[1:]:
        total = total + level
    return total


def _in_order(values_BL: np.ndarray) -> np.ndarray:
    """[B]: the sum from left to right."""
    total_B = np.zeros(len(values_BL), values_BL.dtype)
    for column_B in values_BL.T:
        total_B = total_B + column_B
    return total_B
