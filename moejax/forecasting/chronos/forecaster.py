"""Chronos models as forecasters of the common interface: series in, samples or quantiles out."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moejax.checks import require_positive
from moejax.forecasting.chronos.bolt import ChronosBoltPipeline
from moejax.forecasting.chronos.contexts import MOST_ROWS
from moejax.forecasting.chronos.pipeline import ChronosMoEPipeline, ChronosPipeline
from moejax.forecasting.memory import require_samples_fit
from moejax.forecasting.series import Forecast, History
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_bolt import BoltConfig

Pipeline = ChronosPipeline | ChronosBoltPipeline


class ChronosForecaster:
    """Any of the pipelines; see `moejax.forecasting.series.Forecaster`.

    Targets are forecast one by one. Covariates are not used, with a warning. `context_length`: how
    much of a series is read, None: as much as the model can.
    """

    def __init__(self, pipeline: Pipeline, context_length: int | None = None):
        if context_length is not None:
            require_positive("context_length", context_length)
        self.pipeline = pipeline
        self.context_length = context_length

    @classmethod
    def from_pretrained(cls, source: str, context_length: int | None = None) -> "ChronosForecaster":
        """Of a folder or a hub id, of whichever kind it is."""
        from moejax.interop.chronos import load_chronos

        config, variables = load_chronos(source)
        return cls(make_pipeline(config, variables), context_length)

    def forecast(
        self,
        histories: Sequence[History],
        prediction_length: int,
        *,
        num_samples: int = 100,
        seed: int = 0,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Forecast | ValueError]:
        """See Forecaster. Chronos-Bolt gives quantiles, which take no samples."""
        require_positive("prediction_length", prediction_length)
        require_positive("num_samples", num_samples)
        rows = sum(len(history.target) for history in histories)
        require_samples_fit(num_samples, prediction_length, rows)
        if any(h.known_ahead is not None or h.past_only is not None for h in histories):
            warnings.warn("Chronos does not use covariates; they are left out", stacklevel=2)
        found: dict[int, Forecast | ValueError] = {}
        batch: dict[int, History] = {}
        first = 0
        for index, history in enumerate(histories):
            try:
                history.check(prediction_length)
                batch[index] = history
            except ValueError as error:
                found[index] = error
            size = sum(len(one.target) for one in batch.values())
            if batch and (size >= MOST_ROWS or index + 1 == len(histories)):
                results = self._batch(
                    list(batch.values()), prediction_length, num_samples, seed, first
                )
                found |= zip(batch, results, strict=True)
                first += size
                batch.clear()
            if progress:
                progress(len(found))
        return [found[index] for index in range(len(histories))]

    def _batch(
        self, histories: list[History], steps: int, num_samples: int, seed: int, first: int
    ) -> list[Forecast]:
        longest = self.context_length or 0  # 0: all
        series = [
            np.asarray(values, np.float32)[-longest:]
            for history in histories
            for values in history.target
        ]
        ends = np.cumsum([len(history.target) for history in histories])[:-1]
        if isinstance(self.pipeline, ChronosBoltPipeline):
            found = np.split(self.pipeline.roll_out(series, steps), ends)
            levels = self.pipeline.quantiles
            return [Forecast(levels=levels, quantiles=part.transpose(1, 2, 0)) for part in found]
        sampling = self.pipeline.sampling(num_samples)
        samples, _ = self.pipeline.roll_out(series, steps, sampling, seed, first)
        return [Forecast(samples=part.transpose(1, 2, 0)) for part in np.split(samples, ends)]


def make_pipeline(config: Any, variables: Any) -> Pipeline:
    """The pipeline of a loaded model."""
    if isinstance(config, BoltConfig):
        return ChronosBoltPipeline(config, variables)
    if not isinstance(config, ChronosModelConfig):
        raise ValueError(f"there is no pipeline for a {type(config).__name__}, only the module")
    if config.chronos.use_moe:
        return ChronosMoEPipeline(config, variables)
    return ChronosPipeline(config, variables)
