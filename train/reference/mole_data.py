"""Recorded windows and scalers of the data pipeline, and scores of a published trained model."""

import gzip
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moejax.interop.mole import from_published, published_config
from moejax.models.mole import MoLE, MoLEConfig
from train.data import PARTS, Scaler, Splits, time_features, windows
from train.reference.rows import Case, Computed, Findings
from train.tables import Series, read_published

WINDOW = 1e-10
TRAINED_FORECAST = 1e-4
TRAINED_SCORE = 1e-5
BATCH_SIZE = 512


def check_data(case: Case) -> Findings:
    """Scaler, window counts and single windows of every part, all in float64."""
    series = _load(case)
    if isinstance(series, Findings):
        return series
    seq_len, pred_len = int(case.number("seq_len")), int(case.number("pred_len"))
    splits = _splits(case, series)
    scaler = Scaler.fit(series.values[slice(*splits.train)], series.columns)
    found = Findings(
        computed={
            "scaler.mean": Computed(scaler.mean, WINDOW),
            "scaler.scale": Computed(scaler.scale, WINDOW),
        }
    )
    scaled = scaler.transform(series.values)
    starts: dict[str, np.ndarray] = {part: splits.starts(part, seq_len, pred_len) for part in PARTS}
    for part in PARTS:
        if f"n_{part}" in case.metadata:
            found.numbers[f"n_{part}"] = Computed(len(starts[part]), 0)
    for match in case.matching(r"(train|val|test)\.(-?\d+)\.(x|y|x_mark|x_mark0)"):
        part, index, what = match.groups()
        marks = time_features(series.dates, _freq(case.tensors[match[0]], what))
        start = _start(starts[part], part, int(index))
        value = {
            "x": scaled[start : start + seq_len],
            "y": scaled[start + seq_len : start + seq_len + pred_len],
            "x_mark": marks[start : start + seq_len],
            "x_mark0": marks[start],
        }[what]
        found.computed[match[0]] = Computed(value, WINDOW)
    return found


def _start(starts: np.ndarray, part: str, index: int) -> int:
    if not -len(starts) <= index < len(starts):
        raise ValueError(f"window {index} of {part} is asked for; there are {len(starts)}")
    return int(starts[index])


def check_trained(case: Case) -> Findings:
    """A published trained model: forecasts of some test windows, and scores over all of them."""
    series = _load(case)
    if isinstance(series, Findings):
        return series
    y = case.tensor("out.y")
    published = case.under("param.")
    config = published_config(published, pred_len=y.shape[1], num_channels=y.shape[2])
    params = from_published(published, config)
    x, mark, target = _test_windows(case, series, config)
    forecast, gate = _forecast(config, params, x, mark)

    ids = case.tensor("idx")
    return Findings(
        computed={
            "out.y": Computed(forecast[ids], TRAINED_FORECAST),
            "out.gate": Computed(gate[ids], TRAINED_FORECAST),
            "out.gate_mean_KC": Computed(gate.mean(axis=0), TRAINED_FORECAST),
        },
        numbers=_scores(case, forecast - target),
        inputs={"idx", *(f"param.{name}" for name in published)},
    )


def _scores(case: Case, error: np.ndarray) -> dict[str, Computed]:
    """MSE and MAE over all windows, and over those that the official loader did not drop."""
    found = {"n_test": Computed(len(error), 0)}
    counts = {"all": len(error)}
    if "n_droplast" in case.metadata:
        counts["droplast"] = int(case.number("n_droplast"))
    for label, count in counts.items():
        kept = error[:count].astype(np.float64)
        found[f"mse_{label}"] = Computed(np.mean(kept**2), TRAINED_SCORE)
        found[f"mae_{label}"] = Computed(np.mean(np.abs(kept)), TRAINED_SCORE)
    return {name: computed for name, computed in found.items() if name in case.metadata}


def _test_windows(
    case: Case, series: Series, config: MoLEConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [W,S,C], mark [W,F] and target [W,P,C] of all test windows, scaled, float32."""
    splits = _splits(case, series)
    starts = splits.starts("test", config.seq_len, config.pred_len)
    scaler = Scaler.fit(series.values[slice(*splits.train)], series.columns)
    scaled = scaler.transform(series.values).astype(np.float32)
    marks = time_features(series.dates, "t" if config.num_time_features == 5 else "h")
    return (
        windows(scaled, starts, config.seq_len),
        marks[starts].astype(np.float32),
        windows(scaled, starts + config.seq_len, config.pred_len),
    )


def _forecast(config: MoLEConfig, params: Any, x_BSC: np.ndarray, mark_BF: np.ndarray):
    """Forecasts [W,P,C] and gates [W,K,C] of all windows, in batches."""

    @jax.jit
    def apply(x_BSC, mark_BF):
        forecast = MoLE(config).bind({"params": params})(x_BSC, mark_BF)
        return forecast.y, forecast.gate

    spans = [slice(i, i + BATCH_SIZE) for i in range(0, len(x_BSC), BATCH_SIZE)]
    parts = [jax.tree.map(np.asarray, apply(x_BSC[span], mark_BF[span])) for span in spans]
    ys, gates = zip(*parts, strict=True)
    return np.concatenate(ys), np.concatenate(gates)


def _freq(recorded: np.ndarray, what: str) -> Any:
    return "t" if what.startswith("x_mark") and recorded.shape[-1] == 5 else "h"


def _splits(case: Case, series: Series) -> Splits:
    """The split of the official loader: by months for ETT, else 70/10/20 %."""
    file = case.metadata["csv"]
    loader = case.metadata.get("loader", "Dataset_ETT" if file.startswith("ETT") else "")
    if loader.startswith("Dataset_ETT"):
        return Splits.months(series.num_rows, round(86400 / series.step_seconds()))
    return Splits.ratio(series.num_rows)


def _load(case: Case) -> Series | Findings:
    """The series that the metadata names, as published; Findings that say what is missing."""
    name = case.metadata.get("csv", "")
    folders = [case.folder.resolve().parent / "data", case.folder.resolve().parent.parent / "data"]
    if "MOEJAX_DATA" in os.environ:
        folders.insert(0, Path(os.environ["MOEJAX_DATA"]))
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if name and path.is_file():
                raw = path.read_bytes()
                text = gzip.decompress(raw) if path.suffix == ".gz" else raw
                return read_published(text, name=path.stem, source=str(path))
    looked = ", ".join(map(str, folders))
    return Findings(note=f"needs {name or 'a csv that the metadata names'}; looked in {looked}")
