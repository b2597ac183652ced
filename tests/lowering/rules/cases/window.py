"""Sums over sliding windows."""

import flax.linen as nn
import numpy as np
from jax import lax

from tests.lowering.rules.cases.base import Case, normal

X = normal(2, 9, 5)
IMAGE = normal(2, 6, 8, 3)


def _sum(x, dimensions, strides=None, padding="VALID", dilation=None):
    strides = strides or (1,) * len(dimensions)
    return lax.reduce_window(
        x, np.float32(0), lax.add, dimensions, strides, padding, window_dilation=dilation
    )


CASES = [
    Case("reduce_window_sum", "rows", lambda x: _sum(x, (1, 3, 1)), (X,)),
    Case("reduce_window_sum", "columns", lambda x: _sum(x, (1, 1, 3)), (X,)),
    Case("reduce_window_sum", "outer axis", lambda x: _sum(x, (2, 1, 1)), (X,)),
    Case("reduce_window_sum", "same", lambda x: _sum(x, (1, 3, 1), padding="SAME"), (X,)),
    Case("reduce_window_sum", "strided", lambda x: _sum(x, (1, 4, 2), (1, 2, 2)), (X,)),
    Case("reduce_window_sum", "dilated", lambda x: _sum(x, (1, 3, 1), dilation=(1, 2, 1)), (X,)),
    Case(
        "reduce_window_sum",
        "padded",
        lambda x: _sum(x, (1, 3, 1), padding=((0, 0), (2, 1), (0, 0))),
        (X,),
    ),
    Case("reduce_window_sum", "two axes", lambda x: _sum(x, (1, 3, 3)), (X,), bfloat16=0.01),
    Case("reduce_window_sum", "rank 1", lambda x: _sum(x, (3,)), (X[0, :, 0],)),
    Case(
        "reduce_window_sum",
        "avg_pool",
        lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
        (IMAGE,),
        bfloat16=0.01,
    ),
    Case(
        "reduce_window_sum", "avg_pool same", lambda x: nn.avg_pool(x, (3,), padding="SAME"), (X,)
    ),
    Case(
        "reduce_window_sum",
        "avg_pool count_include_pad",
        lambda x: nn.avg_pool(x, (3,), padding="SAME", count_include_pad=False),
        (X,),
    ),
    Case("reduce_window_sum", "identity", lambda x: _sum(x, (1, 1, 1)) * 2, (X,)),
]
