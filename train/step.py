"""The compiled inner loops: many training steps in one call, and scoring over a whole part.

One call is a lax.scan over batches of indices; data stays on the device and batches are cut
inside. The usual path does not look for non-finite numbers in each step (that alone would cost a
third of the speed of a small model). A call that ends with any is run again from where it began by
a second program that checks every step and skips the bad ones.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.task import Task


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "opt_state", "key", "step", "skipped", "streak", "worst_streak"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """All that training changes. Randomness of a step comes from `key` (raw data) and `step` alone.

    `params`: see Task. `skipped`: steps left out so far; `streak`: how many in a row up to now;
    `worst_streak`: at most.
    """

    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array
    skipped: jax.Array
    streak: jax.Array
    worst_streak: jax.Array


def init_state(task: Task, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """Fresh state from a seed."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    # what `start` gives is no constant of a compiled function, however large
    params = jax.jit(task.init)(init_key) if task.start is None else task.start()
    state = TrainState(
        params=params,
        opt_state=jax.jit(optimizer.init)(trained(task, params)),
        key=jax.random.key_data(step_key),
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        streak=jnp.zeros((), jnp.int32),
        worst_streak=jnp.zeros((), jnp.int32),
    )
    return placed(task, state)


def state_shapes(task: Task, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes of the task's state; nothing is computed, nothing loaded."""
    return jax.eval_shape(lambda: init_state(replace(task, start=None), optimizer, 0))


def placed(task: Task, tree: Any) -> Any:
    """The arrays of a state, or of a part of it, where the task wants them."""
    return tree if task.shardings is None else jax.device_put(tree, task.shardings(tree))


def trained(task: Task, params: Any) -> Any:
    """The part of a task's parameters that the optimiser changes."""
    return params if task.update is None else params["params"]


def all_finite(tree: Any) -> jax.Array:
    """Whether every number in a pytree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def _replaced(task: Task, params: Any, new: Any) -> Any:
    return new if task.update is None else {**params, "params": new}


def _gradients(
    task: Task, arrays: Any, params: Any, indices_B: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
    """The weight of a batch; its metrics, the loss among them, and gradients."""
    batch = task.cut(arrays, indices_B)

    def loss(new: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return task.loss(_replaced(task, params, new), batch, key)

    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trained(task, params))
    return task.weight(batch), ({"loss": value, **metrics}, grads)


def _accumulated(
    task: Task, arrays: Any, params: Any, indices_AB: jax.Array, key: jax.Array
) -> tuple[dict[str, jax.Array], Any]:
    """Means of metrics and gradients over batches that are worked on one after the other."""

    def scaled(indices_B: jax.Array, key: jax.Array) -> Any:
        weight, found = _gradients(task, arrays, params, indices_B, key)
        return weight, jax.tree.map(lambda leaf: weight * leaf, found)

    def add(sums: Any, one: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, scaled(*one)), None

    keys = jax.random.split(key, len(indices_AB))
    shapes = jax.eval_shape(scaled, indices_AB[0], keys[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, sums = jax.lax.scan(add, zeros, (indices_AB, keys))[0]
    return jax.tree.map(lambda leaf: leaf / total, sums)


def _step(
    task: Task,
    optimizer: optax.GradientTransformation,
    guarded: bool,
    accumulate: int,
    arrays: Any,
    state: TrainState,
    indices_B: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    if accumulate == 1:
        metrics, grads = _gradients(task, arrays, state.params, indices_B, key)[1]
    else:
        indices_AB = indices_B.reshape(accumulate, -1)
        metrics, grads = _accumulated(task, arrays, state.params, indices_AB, key)
    old = trained(task, state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, old)
    params = _replaced(task, state.params, optax.apply_updates(old, updates))
    if task.update is not None:
        params, opt_state = task.update(params, opt_state, metrics, key)
    skipped, streak, worst = state.skipped, state.streak, state.worst_streak
    if guarded:
        good = all_finite((metrics["loss"], grads, params, opt_state))
        old = (state.params, state.opt_state)
        params, opt_state = jax.tree.map(
            lambda new, kept: jnp.where(good, new, kept), (params, opt_state), old
        )
        skipped = skipped + jnp.where(good, 0, 1)
        streak = jnp.where(good, 0, streak + 1)
        worst = jnp.maximum(worst, streak)
        metrics = {name: jnp.where(good, value, jnp.nan) for name, value in metrics.items()}
    new = TrainState(params, opt_state, state.key, state.step + 1, skipped, streak, worst)
    return new, metrics


def make_call(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    unroll: int = 1,
    guarded: bool = False,
    accumulate: int = 1,
) -> Any:
    """A jitted (state, arrays, indices [steps,batch]) -> (state, metrics [steps], all finite).

    The state is donated. A step takes the gradient of its batch in `accumulate` equal pieces.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def call(
        state: TrainState, arrays: Any, indices: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array], jax.Array]:
        step = functools.partial(_step, task, optimizer, guarded, accumulate, arrays)
        state, metrics = jax.lax.scan(step, state, indices, unroll=unroll)
        finite = all_finite((metrics, state.params, state.opt_state))
        return placed(task, state), metrics, finite

    return call


class Trainer:
    """Runs calls of training steps: fast, or step by step where numbers stop being finite."""

    def __init__(
        self,
        task: Task,
        optimizer: optax.GradientTransformation,
        *,
        unroll: int = 1,
        accumulate: int = 1,
    ):
        self.arrays = task.arrays
        self._fast = make_call(task, optimizer, unroll=unroll, accumulate=accumulate)
        self._guarded = make_call(task, optimizer, guarded=True, accumulate=accumulate)
        self._copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
        self._compiled: dict[tuple[int, ...], Any] = {}

    def prepare(self, state: TrainState, shape: tuple[int, ...]) -> None:
        """Compile for calls of this [steps,batch], so that `run` can be timed."""
        if shape not in self._compiled:
            indices = jax.ShapeDtypeStruct(shape, jnp.int32)
            self._compiled[shape] = self._fast.lower(state, self.arrays, indices).compile()
            self._copy(state)

    def run(
        self, state: TrainState, indices: np.ndarray
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """The state after the steps of indices [steps,batch], and the metrics [steps] on the host.

        Metrics of a skipped step are NaN. The given state stays valid: a call works on a copy.
        """
        self.prepare(state, indices.shape)
        fast = self._compiled[indices.shape]
        new, metrics, finite = fast(self._copy(state), self.arrays, indices)
        if not finite:
            new, metrics, _ = self._guarded(self._copy(state), self.arrays, indices)
        return new, jax.device_get(metrics)


class Scorer:
    """Means of a task's errors over all windows of a part; nothing is dropped."""

    def __init__(self, task: Task, *, batch_size: int = 256):
        self.task, self.batch_size = task, batch_size
        self._sums = jax.jit(self._scan)

    def _scan(self, params: Any, arrays: Any, indices: jax.Array, weights: jax.Array) -> Any:
        def body(carry: None, one: tuple[jax.Array, jax.Array]) -> tuple[None, Any]:
            indices_B, weights_B = one
            errors = self.task.errors(params, self.task.cut(arrays, indices_B))
            return carry, {
                name: jnp.tensordot(weights_B, value, axes=1) for name, value in errors.items()
            }

        return jax.lax.scan(body, None, (indices, weights))[1]

    def means(self, params: Any, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Mean over the samples of each error, summed over batches in float64."""
        count = len(indices)
        size = min(self.batch_size, count)
        rows = -(-count // size)
        padded = np.resize(indices, rows * size).reshape(rows, size)
        weights = (np.arange(rows * size) < count).astype(np.float32).reshape(rows, size)
        sums = jax.device_get(self._sums(params, self.task.arrays, padded, weights))
        return {
            name: np.sum(value, axis=0, dtype=np.float64) / count for name, value in sums.items()
        }

    def scores(self, params: Any, part: str) -> dict[str, float]:
        """The task's named scores over all samples of a part."""
        return self.task.scores(self.means(params, self.task.indices[part]))
