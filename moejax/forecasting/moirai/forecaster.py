"""MOIRAI-MoE ready to forecast: histories in, samples out.

B series of a batch, L steps of context, H ahead, C targets, F and G covariates, S samples.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moejax.checks import require_choice, require_positive
from moejax.forecasting.memory import require_memory, require_samples_fit
from moejax.forecasting.missing import causal_mean, zeros
from moejax.forecasting.moirai.arrange import arrange, bucket, known_tokens, needed_patches
from moejax.forecasting.moirai.autoregress import Plan, roll_out, steps_of
from moejax.forecasting.moirai.packing import Window, layout_of, pack
from moejax.forecasting.series import Forecast, History
from moejax.models.moirai_moe import MoiraiMoEConfig

DEFAULT_CONTEXT = 1024
MOST_SERIES = 64
BATCH_BYTES = 2**30  # of activations of one layer


class MoiraiMoEForecaster:
    """A Forecaster over a MOIRAI-MoE and its variables.

    `context_length` None: the last 1024 steps, or as many as the model's max_seq_len leaves.
    `patch_size` None: 16 where the model has it, else its first.
    """

    def __init__(
        self,
        config: MoiraiMoEConfig,
        variables: Any,
        *,
        context_length: int | None = None,
        patch_size: int | None = None,
    ) -> None:
        if patch_size is None:
            patch_size = 16 if 16 in config.patch_sizes else config.patch_sizes[0]
        require_choice("patch_size", patch_size, config.patch_sizes)
        if context_length is not None:
            require_positive("context_length", context_length)
        self.config = config
        self.patch_size = patch_size
        self.context_length = context_length
        self.variables = jax.device_put(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)
        )

    def predict(
        self,
        past_target: Any,
        prediction_length: int,
        *,
        known_ahead: Any = None,
        past_only: Any = None,
        num_samples: int = 100,
        seed: int = 0,
    ) -> np.ndarray:
        """Samples [B, N, H] of series [B, L], or [B, N, H, C] of [B, L, C]; NaN is missing.

        known_ahead [B, L + H, F], past_only [B, L, G]. ValueError for the first bad series.
        """
        past = np.asarray(past_target, np.float64)
        if past.ndim not in (2, 3):
            raise ValueError(f"past_target has shape {past.shape}; give [B, L] or [B, L, C]")
        for name, values in (("known_ahead", known_ahead), ("past_only", past_only)):
            if values is not None and (np.ndim(values) != 3 or len(values) != len(past)):
                raise ValueError(
                    f"{name} has shape {np.shape(values)}; give [{len(past)}, steps, covariates]"
                )
        histories = [
            History(
                target=np.atleast_2d(one.T),
                known_ahead=None if known_ahead is None else np.asarray(known_ahead[row]).T,
                past_only=None if past_only is None else np.asarray(past_only[row]).T,
            )
            for row, one in enumerate(past)
        ]
        found = self.forecast(histories, prediction_length, num_samples=num_samples, seed=seed)
        samples = np.zeros((len(past), num_samples, prediction_length, *past.shape[2:]), np.float32)
        for row, one in enumerate(found):
            if isinstance(one, ValueError):
                raise ValueError(f"series {row}: {one}") from one
            assert one.samples is not None
            samples[row] = one.samples.reshape(samples[row].shape)
        return samples

    def forecast(
        self,
        histories: Sequence[History],
        prediction_length: int,
        *,
        num_samples: int = 100,
        seed: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Forecast | ValueError]:
        """See Forecaster. Series of equally many patches share a batch and what is compiled."""
        require_positive("prediction_length", prediction_length)
        require_positive("num_samples", num_samples)
        context = self._context(prediction_length)
        require_samples_fit(
            num_samples, prediction_length, sum(len(np.atleast_1d(one.target)) for one in histories)
        )
        found: list[Forecast | ValueError] = [ValueError("not forecast")] * len(histories)
        groups: dict[_Shape, list[int]] = defaultdict(list)
        for index, history in enumerate(histories):
            try:
                history.check(prediction_length)
                groups[self._shape(history, context, prediction_length)].append(index)
            except ValueError as error:
                found[index] = error
        done = len(histories) - sum(map(len, groups.values()))
        for shape, indices in groups.items():
            try:
                size, samples, chunks = self._batch(
                    shape, prediction_length, num_samples, len(indices)
                )
            except ValueError as error:
                found = [error if i in indices else one for i, one in enumerate(found)]
                done += len(indices)
                continue
            for start in range(0, len(indices), size):
                some = indices[start : start + size]
                windows = [_window(histories[index], context, prediction_length) for index in some]
                places = np.resize(some, size)
                values = self._samples(
                    _joined([windows[i % len(some)] for i in range(size)]),
                    shape,
                    prediction_length,
                    _keys(seed, places, samples),
                    chunks,
                )
                for index, one in zip(some, values, strict=False):
                    found[index] = Forecast(samples=one[:num_samples])
                done += len(some)
                if progress:
                    progress(done)
        return found

    def _context(self, prediction_length: int) -> int:
        patch, most = self.patch_size, self.config.max_seq_len
        room = (most - -(-prediction_length // patch)) * patch
        if room < patch:
            raise ValueError(
                f"{prediction_length} steps ahead take {-(-prediction_length // patch)} patches of "
                f"{patch}; the model's max_seq_len is {most}, and a patch of context is needed"
            )
        if self.context_length is None:
            return min(DEFAULT_CONTEXT, room)
        if self.context_length > room:
            raise ValueError(
                f"context_length is {self.context_length}; with {prediction_length} steps ahead "
                f"the model's max_seq_len of {most} patches of {patch} leaves {room}"
            )
        return self.context_length

    def _shape(self, history: History, context: int, horizon: int) -> "_Shape":
        window = _window(history, context, horizon)
        layout = layout_of(window, horizon, self.patch_size)
        if not window.observed.any():
            raise ValueError(f"none of its last {context} steps, the context, has a value")
        tokens = pack(window, horizon, patch=self.patch_size, width=self.config.patch_length)
        past = bucket(int(needed_patches(tokens, layout)[0]))
        return _Shape(past, layout.targets, layout.ahead, layout.past_only)

    def _batch(
        self, shape: "_Shape", horizon: int, num_samples: int, count: int
    ) -> tuple[int, int, int]:
        """(series of a batch, samples rounded up, chunks of them), so that memory suffices.

        ValueError where a single sample does not fit.
        """
        config = self.config
        future = -(-horizon // self.patch_size)
        variates = shape.targets + shape.ahead + shape.past_only
        length = variates * shape.past + (shape.targets + shape.ahead) * future
        numbers = length * (3 * config.num_heads * length + 12 * config.d_model)
        numbers += length * config.top_k * (3 * config.d_ff + 2 * config.d_model)
        require_memory(
            4 * numbers,
            f"a sample of {variates} variates, {length} tokens,",
            "give fewer targets and covariates, a shorter context or horizon",
        )
        most = max(BATCH_BYTES // (4 * numbers), 1)
        size = 2 ** max(min(most // num_samples, MOST_SERIES).bit_length() - 1, 0)
        size = min(size, 2 ** (count - 1).bit_length())
        chunks = -(-num_samples * size // most)
        return size, chunks * -(-num_samples // chunks), chunks

    def _samples(
        self, window: Window, shape: "_Shape", horizon: int, keys_SB: jax.Array, chunks: int
    ) -> np.ndarray:
        """[B, S, H, C] of windows of one shape."""
        layout = layout_of(window, horizon, self.patch_size)
        tokens = pack(window, horizon, patch=self.patch_size, width=self.config.patch_length)
        plan = Plan(
            targets=layout.targets,
            past=shape.past,
            known=known_tokens(layout, shape.past),
            patches=layout.future,
            samples=len(keys_SB),
            chunks=chunks,
        )
        tokens = jax.tree.map(jnp.asarray, arrange(tokens, layout, shape.past))
        values, _ = roll_out(self.config, plan, self.variables, tokens, keys_SB)
        return np.asarray(steps_of(values, self.patch_size, horizon))


class _Shape(NamedTuple):
    """What series of a batch have in common: patches of past, and variates of each kind."""

    past: int
    targets: int
    ahead: int
    past_only: int


@partial(jax.jit, static_argnames="num_samples")
def _keys(seed: int, place_B: Any, num_samples: int) -> jax.Array:
    """A key for each sample and series [S, B], by the series' place, whatever S and B are."""

    def one(sample, place):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), place), sample)

    by_series = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(by_series, in_axes=(0, None))(jnp.arange(num_samples), jnp.asarray(place_B))


def _window(history: History, context: int, horizon: int) -> Window:
    """The last `context` steps [1, L, C], zeros and `pad` before the series began."""
    length = min(context, history.target.shape[1])
    missing = context - length
    fill = causal_mean if len(history.target) == 1 else zeros

    def last(values: np.ndarray, steps: int, how: Callable[[np.ndarray], np.ndarray]) -> Any:
        """The last steps [1, steps, C], filled by all that was before them, and what is there."""
        filled = np.stack([how(one) for one in values.astype(np.float32)])
        room = ((0, 0), (missing, 0), (0, 0))
        return [np.pad(x[:, -steps:].T[None], room) for x in (filled, ~np.isnan(values))]

    others: dict[str, np.ndarray] = {}
    if history.known_ahead is not None:
        names = "ahead", "ahead_observed"
        others |= zip(names, last(history.known_ahead, length + horizon, zeros), strict=True)
    if history.past_only is not None:
        names = "past_only", "past_only_observed"
        others |= zip(names, last(history.past_only, length, zeros), strict=True)
    target, observed = last(history.target, length, fill)
    return Window(
        target=target, observed=observed, pad=np.arange(context)[None] < missing, **others
    )


def _joined(windows: list[Window]) -> Window:
    parts = {}
    for one in fields(Window):
        values = [getattr(window, one.name) for window in windows]
        parts[one.name] = None if values[0] is None else np.concatenate(values)
    return Window(**parts)
