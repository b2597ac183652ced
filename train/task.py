"""What the training loop needs to know of a model and its data: plain functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
Batch = Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model on its data.

    `arrays`: pytree of data that stays on the device. `indices`: int32 [W] per part ("train",
    "val", "test"), what batches are made of. `cut(arrays, indices [B])` makes a batch inside jit.
    `init(key)` gives the parameters. `loss(params, batch, key)` gives (loss, metrics), a scalar and
    float arrays.
    `errors(params, batch)` gives a dict of sums over targets and steps, each [B,...], for scores.
    `scores(means)` turns the dict of means over all samples (float64) into named numbers, of which
    `watched` decides which parameters are the best: the lower, the better. `fingerprint`
    identifies the data.

    A model with state beside its parameters has `update`. `params` is then a dict of which the
    entry "params" alone is trained, and `update(params, optimiser_state, metrics, key)` gives both
    after an optimiser step, from the metrics of that step. `weight(batch)` is what a batch counts
    for among those whose gradients are accumulated. `report(params)` adds to the line of an epoch.
    `shardings(state)`: where the arrays of a training state lie, on several devices.
    `start()`: parameters to begin with in place of `init`'s. `closing(params)` adds to the final
    line what takes longer than `scores`; its time does not count as training.
    """

    arrays: Any
    indices: Mapping[Any, np.ndarray]
    cut: Callable[[Any, jax.Array], Batch]
    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    errors: Callable[[Params, Batch], dict[str, jax.Array]]
    scores: Callable[[dict[str, np.ndarray]], dict[str, float]]
    watched: str = "mse"
    update: Callable[..., tuple[Params, Any]] | None = None
    weight: Callable[[Batch], jax.Array] = lambda _: jnp.ones(())
    report: Callable[[Params], dict[str, Any]] = lambda _: {}
    shardings: Callable[[Any], Any] | None = None
    start: Callable[[], Params] | None = None
    closing: Callable[[Params], dict[str, Any]] = lambda _: {}
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
