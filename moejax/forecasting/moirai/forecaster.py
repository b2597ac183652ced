"""MOIRAI-MoE ready to forecast: histories in, samples out.

B series of a batch, L steps of context, H ahead, C targets, F and G covariates, S samples.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.checks import require_choice, require_positive
from moejax.forecasting.memory import require_samples_fit
from moejax.forecasting.missing import causal_mean, zeros
from moejax.forecasting.moirai.arrange import arrange, bucket, known_tokens, needed_patches
from moejax.forecasting.moirai.autoregress import Plan, roll_out, steps_of
from moejax.forecasting.moirai.packing import Window, layout_of, pack
from moejax.forecasting.series import Forecast, History
from moejax.models.moirai_moe import MoiraiMoEConfig

DEFAULT_CONTEXT = 1024
ROWS = 512


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

    def forecast(
        self,
        histories: Sequence[History],
        prediction_length: int,
        *,
        num_samples: int = 100,
        seed: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Forecast | ValueError]:
        """See Forecaster."""
        require_positive("prediction_length", prediction_length)
        require_positive("num_samples", num_samples)
        context = self._context(prediction_length)
        require_samples_fit(
            num_samples, prediction_length, sum(len(one.target) for one in histories)
        )
        found: list[Forecast | ValueError | None] = [None] * len(histories)
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, history in enumerate(histories):
            try:
                history.check(prediction_length)
                groups[self._shape(history, context, prediction_length)].append(index)
            except ValueError as error:
                found[index] = error
        done = len(histories) - sum(map(len, groups.values()))
        most = max(1, ROWS // num_samples)
        for indices in groups.values():
            for start in range(0, len(indices), most):
                some = indices[start : start + most]
                windows = [_window(histories[index], context, prediction_length) for index in some]
                samples = self._samples(windows, some, prediction_length, num_samples, seed, most)
                for index, one in zip(some, samples, strict=True):
                    found[index] = Forecast(samples=one)
                done += len(some)
                if progress:
                    progress(done)
        return found  # type: ignore[return-value]

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

    def _shape(self, history: History, context: int, horizon: int) -> tuple[int, ...]:
        """What a batch must have in common: patches of past, and variates of each kind."""
        window = _window(history, context, horizon)
        layout = layout_of(window, horizon, self.patch_size)
        if not window.observed.any():
            raise ValueError(f"none of its last {context} steps, the context, has a value")
        tokens = pack(window, horizon, patch=self.patch_size, width=self.config.patch_length)
        past = bucket(int(needed_patches(tokens, layout)[0]))
        return past, layout.targets, layout.ahead, layout.past_only

    def _samples(
        self,
        windows: list[Window],
        places: list[int],
        horizon: int,
        num_samples: int,
        seed: int,
        most: int,
    ) -> np.ndarray:
        """[B, S, H, C] of windows of one shape."""
        size = 1 if len(windows) == 1 else min(most, 2 ** (len(windows) - 1).bit_length())
        filled = windows + windows[:1] * (size - len(windows))
        window = _joined(filled)
        layout = layout_of(window, horizon, self.patch_size)
        tokens = pack(window, horizon, patch=self.patch_size, width=self.config.patch_length)
        past = bucket(int(needed_patches(tokens, layout).max()))
        plan = Plan(
            targets=layout.targets,
            past=past,
            known=known_tokens(layout, past),
            patches=layout.future,
            samples=num_samples,
        )
        place_B = np.array(places + places[:1] * (size - len(windows)), np.uint32)
        keys_SB = _keys(seed, place_B, num_samples)
        tokens = jax.tree.map(jnp.asarray, arrange(tokens, layout, past))
        values, _ = roll_out(self.config, plan, self.variables, tokens, keys_SB)
        return np.asarray(steps_of(values, self.patch_size, horizon))[: len(windows)]


def _keys(seed: int, place_B: np.ndarray, num_samples: int) -> jax.Array:
    """A key for each sample and series, by the series' place."""
    base = jax.random.key(seed)
    keys_B = jax.vmap(lambda place: jax.random.fold_in(base, place))(place_B)
    return jax.vmap(lambda key: jax.random.split(key, num_samples), out_axes=1)(keys_B)


def _window(history: History, context: int, horizon: int) -> Window:
    """The last `context` steps [1, L, C], zeros and `pad` before the series began."""
    target_CL = history.target[:, -context:].astype(np.float32)
    missing = context - target_CL.shape[1]
    fill = causal_mean if len(target_CL) == 1 else zeros

    def rows(values: np.ndarray, how: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        filled = np.stack([how(one) for one in values]).T[None]
        return np.pad(filled, ((0, 0), (missing, 0), (0, 0)))

    def seen(values: np.ndarray) -> np.ndarray:
        return np.pad(~np.isnan(values).T[None], ((0, 0), (missing, 0), (0, 0)))

    others: dict[str, np.ndarray] = {}
    if history.known_ahead is not None:
        known = history.known_ahead[:, -(target_CL.shape[1] + horizon) :].astype(np.float32)
        others |= {"ahead": rows(known, zeros), "ahead_observed": seen(known)}
    if history.past_only is not None:
        past = history.past_only[:, -context:].astype(np.float32)
        others |= {"past_only": rows(past, zeros), "past_only_observed": seen(past)}
    return Window(
        target=rows(target_CL, fill),
        observed=seen(target_CL),
        pad=np.arange(context)[None] < missing,
        **others,
    )


def _joined(windows: list[Window]) -> Window:
    parts = {}
    for one in fields(Window):
        values = [getattr(window, one.name) for window in windows]
        parts[one.name] = None if values[0] is None else np.concatenate(values)
    return Window(**parts)
