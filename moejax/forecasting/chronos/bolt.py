"""Chronos-Bolt forecasts: all quantiles of a block of steps at once, block after block.

B series, L values, Q quantiles, T steps.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from moejax.forecasting.chronos.contexts import (
    LEVELS,
    as_series,
    check_horizon,
    check_levels,
    pad_front,
    padded_length,
    parts,
)
from moejax.forecasting.chronos.tokenizer import stack_left
from moejax.forecasting.memory import require_samples_fit
from moejax.models.chronos_bolt import BoltConfig, ChronosBolt


@partial(jax.jit, static_argnums=0)
def _apply(config: BoltConfig, variables: Any, values_BL: Any) -> jax.Array:
    return ChronosBolt(config).apply(variables, values_BL)  # type: ignore[return-value]


@partial(jax.jit, static_argnums=0)
def _encode(config: BoltConfig, variables: Any, values_BL: Any):
    def states(module: ChronosBolt, values_BL):
        x_BSD, mask_BS, loc, scale = module.tokens(values_BL)
        return module.encoder(x_BSD, mask_BS), loc, scale

    return ChronosBolt(config).apply(variables, values_BL, method=states)


class ChronosBoltPipeline:
    """Quantiles of the future of series. Inputs as in ChronosPipeline."""

    def __init__(self, config: BoltConfig, variables: Any):
        self.config = config
        self.variables = variables

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """Of a folder or a hub id; options as `moejax.interop.chronos.load_chronos` takes them."""
        from moejax.interop.chronos import load_chronos

        config, variables = load_chronos(source, **options)
        if not isinstance(config, BoltConfig):
            raise ValueError(f"{source} is no Chronos-Bolt; use ChronosPipeline")
        return cls(config, variables)

    @property
    def quantiles(self) -> tuple[float, ...]:
        """The levels that the model was trained for."""
        return self.config.quantiles

    @property
    def prediction_length(self) -> int:
        """The steps of a block."""
        return self.config.prediction_length

    def predict(
        self,
        inputs: Any,
        prediction_length: int | None = None,
        limit_prediction_length: bool = False,
    ) -> np.ndarray:
        """Quantiles float32 [B, Q, T] at the trained levels."""
        steps = check_horizon(
            prediction_length, self.prediction_length, limit_prediction_length, warnings.warn
        )
        return self.roll_out(as_series(inputs), steps)

    def predict_quantiles(
        self,
        inputs: Any,
        prediction_length: int | None = None,
        quantile_levels: Sequence[float] = LEVELS,
        **predict_kwargs: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(quantiles [B, T, levels], median [B, T]).

        Between trained levels linear, beyond them the outermost; the median stands for the mean.
        """
        levels = check_levels(quantile_levels)
        found_BQT = self.predict(inputs, prediction_length, **predict_kwargs)
        return self.at_levels(found_BQT, levels), self.median(found_BQT)

    def embed(self, inputs: Any) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """(the encoder's states [B, S, D]: patches, then the register; (loc, scale) [B])."""
        values_BL = stack_left(as_series(inputs))[:, -self.config.context_length :]
        found = [
            jax.tree.map(
                lambda leaf, n=size: np.asarray(leaf)[:n],
                _encode(self.config, self.variables, self._padded(values_BL[rows])),
            )
            for rows, size in parts(len(values_BL))
        ]
        states, loc, scale = (np.concatenate(leaves) for leaves in zip(*found, strict=True))
        patches = -(-values_BL.shape[1] // self.config.input_patch_size)
        return states[:, -(patches + self.config.use_reg_token) :], (loc[:, 0], scale[:, 0])

    def roll_out(self, series: list[np.ndarray], steps: int) -> np.ndarray:
        """Quantiles [B, Q, steps]. Beyond a block every quantile's path goes on as a series of its
        own; the quantiles of all that they give are the next block.
        """
        count = len(self.quantiles)
        require_samples_fit(count * count, steps, len(series))
        values_BL = stack_left(series)[:, -self.config.context_length :]
        blocks = [self._run(values_BL)]
        paths_BQL = np.repeat(values_BL[:, None], count, axis=1)
        while steps > self.prediction_length * len(blocks):
            paths_BQL = np.concatenate([paths_BQL, blocks[-1]], axis=2)
            paths_BQL = paths_BQL[..., -self.config.context_length :]
            found = self._run(paths_BQL.reshape(-1, paths_BQL.shape[2]))
            found = found.reshape(len(series), count * count, -1)
            block = np.quantile(found, self.quantiles, axis=1).transpose(1, 0, 2)
            blocks.append(block.astype(np.float32))
        return np.concatenate(blocks, axis=2)[..., :steps]

    def at_levels(self, found_BQT: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        """Quantiles [B, T, levels] of those at the trained levels."""
        if set(levels) <= set(self.quantiles):
            picked = [self.quantiles.index(level) for level in levels]
            return found_BQT[:, picked].transpose(0, 2, 1)
        ends = found_BQT[:, :1], found_BQT, found_BQT[:, -1:]
        found = np.quantile(np.concatenate(ends, axis=1), levels, axis=1)
        return found.transpose(1, 2, 0).astype(np.float32)

    def median(self, found_BQT: np.ndarray) -> np.ndarray:
        """[B, T]."""
        return self.at_levels(found_BQT, [0.5])[..., 0]

    def _run(self, values_BL: np.ndarray) -> np.ndarray:
        found = [
            np.asarray(_apply(self.config, self.variables, self._padded(values_BL[rows])))[:size]
            for rows, size in parts(len(values_BL))
        ]
        return np.concatenate(found)

    def _padded(self, values_BL: np.ndarray) -> np.ndarray:
        """Whole patches, as many as a short list has, NaN in front."""
        size = self.config.input_patch_size
        longest = self.config.context_length // size * size
        return pad_front(values_BL, self._length(values_BL.shape[1], size, longest), np.nan)

    @staticmethod
    def _length(length: int, size: int, longest: int) -> int:
        whole = -(-length // size) * size
        return max(min(padded_length(whole // size, longest) * size, longest), whole)
