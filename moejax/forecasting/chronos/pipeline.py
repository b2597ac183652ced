"""Chronos pipelines with the names and results of the published ones, on numpy arrays."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
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
from moejax.forecasting.chronos.generate import encode, generate
from moejax.forecasting.chronos.sampling import Sampling
from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins, Tokens, stack_left
from moejax.forecasting.memory import require_samples_fit
from moejax.models.chronos import ChronosModelConfig
from moejax.moe.assignment import Routing


class ChronosPipeline:
    """Samples of the future of series.

    Inputs are one series [L], rows [B, L] or a list of series, NaN where a value is missing.
    A context is padded on the left to a length from a short list, so that a new one compiles
    nothing; its samples depend on itself, its place in the inputs and the seed alone.
    """

    def __init__(self, config: ChronosModelConfig, variables: Any):
        self.config = config
        self.variables = variables
        self.tokenizer = MeanScaleUniformBins(config.chronos)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """Of a folder or a hub id; options as `moejax.interop.chronos.load_chronos` takes them."""
        from moejax.interop.chronos import load_chronos

        config, variables = load_chronos(source, **options)
        if not isinstance(config, ChronosModelConfig):
            kind = type(config).__name__
            raise ValueError(f"{source} holds a {kind}, which takes another pipeline")
        return cls(config, variables)

    @property
    def prediction_length(self) -> int:
        """The steps that the model was trained for."""
        return self.config.chronos.prediction_length

    def predict(
        self,
        inputs: Any,
        prediction_length: int | None = None,
        num_samples: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        limit_prediction_length: bool = False,
        *,
        seed: int = 0,
    ) -> np.ndarray:
        """Samples float32 [B, N, T]; what is None is as the checkpoint has it.

        Horizons beyond the trained one are forecast window after window, each from the median of
        the one before.
        """
        steps = check_horizon(
            prediction_length, self.prediction_length, limit_prediction_length, warnings.warn
        )
        sampling = self.sampling(num_samples, temperature, top_k, top_p)
        return self.roll_out(as_series(inputs), steps, sampling, seed)[0]

    def predict_quantiles(
        self,
        inputs: Any,
        prediction_length: int | None = None,
        quantile_levels: Sequence[float] = LEVELS,
        **predict_kwargs: Any,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(quantiles [B, T, Q], linear between samples; mean [B, T]) of `predict`'s samples."""
        levels = check_levels(quantile_levels)
        samples_BNT = self.predict(inputs, prediction_length, **predict_kwargs)
        return summarise(samples_BNT, levels)

    def embed(self, inputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """(the encoder's states float32 [B, L + 1, D], the end included; scale [B])."""
        tokens = self.tokenizer.context(stack_left(as_series(inputs)))
        found = [
            encode(self.config, self.variables, *self._padded(tokens, rows))[:size]
            for rows, size in parts(len(tokens.ids))
        ]
        states = np.concatenate([np.asarray(part, np.float32) for part in found])
        return states[:, -tokens.ids.shape[1] :], tokens.scale

    def sampling(self, num_samples=None, temperature=None, top_k=None, top_p=None) -> Sampling:
        """The checkpoint's settings with those that are given in their place."""
        chronos = self.config.chronos
        return Sampling(
            num_samples=chronos.num_samples if num_samples is None else num_samples,
            temperature=chronos.temperature if temperature is None else temperature,
            top_k=chronos.top_k if top_k is None else top_k,
            top_p=chronos.top_p if top_p is None else top_p,
        )

    def roll_out(
        self,
        series: list[np.ndarray],
        steps: int,
        sampling: Sampling,
        seed: int = 0,
        first: int = 0,
    ) -> tuple[np.ndarray, list[Routing]]:
        """Samples [B, N, steps], and a mixture's routing in each window.

        `first`: the number of the first series, which says how it draws.
        """
        require_samples_fit(sampling.num_samples, steps, len(series))
        context_BL = stack_left(series)
        windows, routings = [], []
        while steps > 0:
            window = min(steps, self.prediction_length)
            key = jax.random.fold_in(jax.random.key(seed), len(windows))
            samples_BNT, routing = self._window(context_BL, window, sampling, key, first)
            windows.append(samples_BNT)
            routings += [] if routing is None else [routing]
            steps -= window
            if steps:
                context_BL = np.concatenate([context_BL, lower_median(samples_BNT)], axis=1)
        return np.concatenate(windows, axis=2), routings

    def _window(self, context_BL, steps: int, sampling: Sampling, key, first: int):
        tokens = self.tokenizer.context(context_BL)
        top_p = None if sampling.top_p == 1 else jnp.float32(sampling.top_p)
        found, routings = [], []
        for rows, size in parts(len(tokens.ids)):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(first + rows))
            ids_BNT, routing = generate(
                self.config,
                self.variables,
                *self._padded(tokens, rows),
                keys,
                jnp.float32(sampling.temperature),
                top_p,
                steps=steps,
                samples=sampling.num_samples,
                top_k=sampling.top_k,
            )
            found.append(np.asarray(ids_BNT)[:size])
            if routing is not None:
                routings.append(jax.tree.map(lambda leaf, n=size: np.asarray(leaf)[:n], routing))
        samples = self.tokenizer.decode(np.concatenate(found), tokens.scale)
        if not routings:
            return samples, None
        return samples, jax.tree.map(lambda *leaves: np.concatenate(leaves), *routings)

    def _padded(self, tokens: Tokens, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids and mask of some rows, at a length from the short list."""
        length = padded_length(tokens.ids.shape[1] - 1, self.config.chronos.context_length) + 1
        ids_BS = pad_front(tokens.ids[rows], length, self.config.chronos.pad_token_id)
        return ids_BS, pad_front(tokens.mask[rows], length, False)


class ChronosMoEPipeline(ChronosPipeline):
    """The same of a mixture: it tells which experts a series went to, and counts them."""

    def __init__(self, config: ChronosModelConfig, variables: Any):
        if not config.chronos.use_moe:
            raise ValueError("this model has no experts; use ChronosPipeline")
        super().__init__(config, variables)
        self.reset_stats()

    def predict_with_routing_info(
        self, inputs: Any, prediction_length: int | None = None, **predict_kwargs: Any
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """(samples as of `predict`, the routing of the contexts in the first window).

        router_probs [B, E], expert_indices [B, k] with the likeliest first, top_k_probs [B, k] of
        sum 1, num_experts, num_active_experts.
        """
        limited = predict_kwargs.pop("limit_prediction_length", False)
        seed = predict_kwargs.pop("seed", 0)
        steps = check_horizon(prediction_length, self.prediction_length, limited, warnings.warn)
        sampling = self.sampling(**predict_kwargs)
        samples_BNT, routings = self.roll_out(as_series(inputs), steps, sampling, seed)
        info = {
            "router_probs": routings[0].scores,
            "expert_indices": routings[0].index,
            "top_k_probs": routings[0].weight,
            "num_experts": self.config.chronos.num_experts,
            "num_active_experts": self.config.chronos.num_active_experts,
        }
        return samples_BNT, info

    def roll_out(self, *args: Any, **options: Any) -> tuple[np.ndarray, list[Routing]]:
        """See ChronosPipeline; counts the choices."""
        samples_BNT, routings = super().roll_out(*args, **options)
        for routing in routings:
            counts = np.bincount(np.ravel(routing.index), minlength=len(self._counts))
            self._counts += counts
        return samples_BNT, routings

    def get_expert_usage_stats(self) -> dict[str, Any]:
        """{"total": choices so far, "counts" and "fractions": {"expert_0": ...}}."""
        total = int(self._counts.sum())
        return {
            "total": total,
            "counts": {f"expert_{e}": int(count) for e, count in enumerate(self._counts)},
            "fractions": {
                f"expert_{e}": float(count) / max(total, 1) for e, count in enumerate(self._counts)
            },
        }

    def reset_stats(self) -> None:
        """Count from zero again."""
        self._counts = np.zeros(self.config.chronos.num_experts, np.int64)


def lower_median(samples_BNT: np.ndarray) -> np.ndarray:
    """[B, T]: of an even number of samples the lower of the two in the middle."""
    return np.sort(samples_BNT, axis=1)[:, (samples_BNT.shape[1] - 1) // 2]


def summarise(samples_BNT: np.ndarray, levels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(quantiles [B, T, Q], mean [B, T]) of samples."""
    quantiles = np.quantile(samples_BNT, levels, axis=1).transpose(1, 2, 0)
    return quantiles.astype(np.float32), samples_BNT.mean(axis=1)
