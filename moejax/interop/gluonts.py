"""Any forecaster as a GluonTS predictor: for its datasets, backtests and metrics. No torch.

N samples, H steps ahead, C targets, Q quantiles.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moejax.checks import require_choice, require_positive
from moejax.forecasting.series import Forecast, Forecaster, History

try:
    from gluonts.model.forecast import Forecast as GluonTSForecast
    from gluonts.model.forecast import QuantileForecast, SampleForecast
    from gluonts.model.predictor import Predictor
except ImportError as error:
    raise ImportError(
        "GluonTS is not installed; install the extra: pip install 'moejax[gluonts]'"
    ) from error


class GluonTSPredictor(Predictor):
    """Forecasts of a GluonTS dataset by a forecaster, `batch_size` series at a time.

    Of an entry it reads target [L] or [C, L], start (a pandas Period), item_id,
    feat_dynamic_real [F, L + H] and past_feat_dynamic_real [G, L]. A bad series raises a ValueError
    that names it, or with bad_series="nan" has a forecast of NaN, which `evaluate_model` takes with
    allow_nan_forecast=True.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        prediction_length: int,
        *,
        num_samples: int = 100,
        seed: int = 0,
        batch_size: int = 32,
        bad_series: Literal["raise", "nan"] = "raise",
    ) -> None:
        for name, value in (
            ("prediction_length", prediction_length),
            ("num_samples", num_samples),
            ("batch_size", batch_size),
        ):
            require_positive(name, value)
        require_choice("bad_series", bad_series, ("raise", "nan"))
        super().__init__(prediction_length=prediction_length)
        self.forecaster = forecaster
        self.num_samples = num_samples
        self.seed = seed
        self.batch_size = batch_size
        self.bad_series = bad_series

    def predict(
        self, dataset: Iterable[dict[str, Any]], num_samples: int | None = None, **_: Any
    ) -> Iterator[GluonTSForecast]:
        """A SampleForecast an entry (QuantileForecast of a model without samples), in order."""
        num_samples = self.num_samples if num_samples is None else num_samples
        batches = itertools.batched(dataset, self.batch_size)
        for index, entries in enumerate(batches):
            seed = int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0])
            histories = [_history(entry) for entry in entries]
            results = self.forecaster.forecast(
                histories, self.prediction_length, num_samples=num_samples, seed=seed
            )
            for entry, history, result in zip(entries, histories, results, strict=True):
                if isinstance(result, ValueError):
                    result = self._without(history, result, num_samples)
                yield _convert(result, entry, univariate=np.ndim(entry["target"]) == 1)

    def serialize(self, path: Path) -> None:
        """ValueError: save the model's checkpoint instead and make the predictor anew from it."""
        raise ValueError(
            f"a predictor over {type(self.forecaster).__name__} cannot be serialized; save the "
            "model's checkpoint and make the predictor from it again"
        )

    def _without(self, history: History, error: ValueError, num_samples: int) -> Forecast:
        if self.bad_series == "raise":
            raise ValueError(f"series {history.item_id!r}: {error}") from error
        shape = (num_samples, self.prediction_length, len(history.target))
        return Forecast(samples=np.full(shape, np.nan, np.float32))


def _history(entry: dict[str, Any]) -> History:
    def rows(name: str) -> np.ndarray | None:
        values = entry.get(name)
        return None if values is None else np.atleast_2d(np.asarray(values, np.float64))

    target = rows("target")
    if target is None:
        raise ValueError(f"an entry has no target; its fields: {', '.join(entry)}")
    return History(
        target=target,
        known_ahead=rows("feat_dynamic_real"),
        past_only=rows("past_feat_dynamic_real"),
        item_id=str(entry.get("item_id", "")),
    )


def _convert(forecast: Forecast, entry: dict[str, Any], univariate: bool) -> GluonTSForecast:
    start = entry["start"] + np.shape(entry["target"])[-1]
    item_id = entry.get("item_id")
    if forecast.samples is not None:
        samples = forecast.samples[..., 0] if univariate else forecast.samples
        return SampleForecast(samples=samples, start_date=start, item_id=item_id)
    assert forecast.quantiles is not None
    arrays = np.concatenate([forecast.mean[None], forecast.quantiles])
    return QuantileForecast(
        forecast_arrays=arrays[..., 0] if univariate else arrays,
        start_date=start,
        forecast_keys=["mean", *(f"{level:g}" for level in forecast.levels)],
        item_id=item_id,
    )
