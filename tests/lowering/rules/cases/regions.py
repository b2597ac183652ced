"""Every region that has a device rule, and uses of it that the rule declines."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.layers.decompose import decomposed_linear, moving_average
from moejax.layers.linear import channel_time_linear, linear, time_linear
from moejax.layers.mixture import mixture, window_statistics
from moejax.layers.revin import revin_denorm, revin_norm, revin_stats
from moejax.layers.softmax import softmax, top_k_mask, top_k_softmax
from tests.lowering.rules.cases.base import Case, grid, normal, positive

X = normal(2, 9, 5)
KERNEL, BIAS = normal(9, 6), normal(6)
SCALE = positive(5)

_LINEAR = [
    *(
        Case(
            "moejax.linear",
            f"{activation} rank {x.ndim}",
            lambda x, a=activation: linear(x, normal(5, 6), BIAS, activation=a),
            (x,),
        )
        for activation in (None, "relu", "silu")
        for x in (normal(3, 5), X)
    ),
    Case("moejax.linear", "no bias", lambda x: linear(x, normal(5, 6)), (X,)),
    Case("moejax.linear", "gelu", lambda x: linear(x, normal(5, 6), BIAS, activation="gelu"), (X,)),
    Case("moejax.linear", "tanh", lambda x: linear(x, normal(5, 6), activation="tanh"), (X,)),
    Case("moejax.linear", "computed kernel", linear, (X, normal(5, 6))),
    Case("moejax.linear", "vector", lambda x: linear(x, normal(5, 6), BIAS), (X[0, 0],)),
    Case("function", "vmap of a region", jax.vmap(lambda x: linear(x, normal(5, 6), BIAS)), (X,)),
    Case("moejax.time_linear", "bias", lambda x: time_linear(x, KERNEL, BIAS), (X,)),
    Case("moejax.time_linear", "no bias", lambda x: time_linear(x, KERNEL), (X,)),
    Case("moejax.time_linear", "computed kernel", time_linear, (X, KERNEL)),
    Case(
        "moejax.channel_time_linear",
        "bias",
        lambda x: channel_time_linear(x, normal(5, 9, 6), normal(6, 5)),
        (X,),
    ),
    *(
        Case(
            "moejax.decomposed_linear",
            f"kernel size {size}",
            lambda x, k=size: decomposed_linear(
                x, KERNEL, BIAS, normal(9, 6, seed=1), normal(6, seed=1), kernel_size=k
            ),
            (X,),
        )
        for size in (1, 3, 7)
    ),
    *(
        Case(
            "moejax.moving_average",
            f"kernel size {size}",
            lambda x, k=size: moving_average(x, kernel_size=k),
            (X,),
        )
        for size in (3, 5, 25)
    ),
]
_STATISTICS = [
    *(
        Case("moejax.softmax", f"axis {axis}", lambda x, a=axis: softmax(x, axis=a), (X * 3,))
        for axis in (0, 1, -1)
    ),
    Case("moejax.softmax", "large logits", lambda x: softmax(x * 100, axis=-1), (grid(3, 7),)),
    Case("moejax.mixture", "channel gate", mixture, (normal(2, 3, 7, 5), positive(2, 3, 1, 5))),
    Case("moejax.mixture", "one gate", mixture, (normal(2, 3, 7, 5), positive(2, 3, 1, 1))),
    Case("moejax.mixture", "aligned", mixture, (normal(2, 3, 32, 5), positive(2, 3, 1, 5))),
    Case("moejax.revin_stats", "window", lambda x: revin_stats(x, eps=1e-5), (X + 3,)),
    Case(
        "moejax.revin_norm",
        "window",
        lambda x: revin_norm(x, x[:, :1], jnp.abs(x[:, 1:2]) + 1, SCALE, BIAS[:5]),
        (X,),
    ),
    Case(
        "moejax.revin_denorm",
        "window",
        lambda y, mean, std: revin_denorm(y, mean, std, SCALE, BIAS[:5], eps=1e-5),
        (X, normal(2, 1, 5), positive(2, 1, 5)),
    ),
    Case(
        "moejax.revin_denorm",
        "computed scale",
        lambda *args: revin_denorm(*args, eps=1e-5),
        (X, normal(2, 1, 5), positive(2, 1, 5), SCALE, BIAS[:5]),
    ),
    Case("moejax.window_statistics", "window", window_statistics, (X,)),
    Case("moejax.window_statistics", "constant", window_statistics, (np.ones_like(X),)),
    Case("moejax.top_k_mask", "ties", lambda x: top_k_mask(x, k=2), (grid(5, 7),)),
    Case("moejax.top_k_softmax", "ties", lambda x: top_k_softmax(x, k=2), (grid(5, 7),)),
]

CASES = [*_LINEAR, *_STATISTICS]
