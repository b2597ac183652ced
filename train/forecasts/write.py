"""What a forecast leaves in its folder: quantiles, samples, bad series, settings.

S series, N samples, H steps ahead, C targets.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from train.files import replacing
from train.forecasts.frames import Forecasts, quantile_frame

QUANTILES, SAMPLES, BAD, SETTINGS = (
    "quantiles.csv",
    "samples.npz",
    "bad_series.csv",
    "forecast.json",
)

SCORES = "scores.csv"
KEPT = "Files written before are whole"


def prepare_folder(path: Path | str) -> Path:
    """The folder, made and known to be writable before work is spent; ValueError if it is not."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writing"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written to: {error}") from error
    return folder


def write_bad(folder: Path, found: Forecasts) -> None:
    """bad_series.csv: item_id, column, reason; only its head where all went well."""
    rows = [(one.item_id, one.column, one.reason) for one in found.bad]
    frame = pd.DataFrame(rows, columns=["item_id", "column", "reason"])
    with replacing(folder / BAD, KEPT) as file:
        file.write(frame.to_csv(index=False).encode())


def write_quantiles(
    folder: Path, found: Forecasts, levels: Sequence[float], named_targets: bool
) -> None:
    """quantiles.csv: a row a series, target and step, numbers to seven digits."""
    frame = quantile_frame(found, levels, named_targets)
    text = frame.to_csv(index=False, float_format="%.7g")
    with replacing(folder / QUANTILES, KEPT) as file:
        file.write(text.encode())


def write_samples(folder: Path, found: Forecasts) -> bool:
    """samples.npz: samples [S,N,H,C], timestamps [S,H], item_id [S], targets [S,C]; False if none.

    A model that gives quantiles alone has no samples: a file of an earlier run is taken away.
    """
    samples = [one.samples for one in found.forecasts if one.samples is not None]
    if not samples:
        (folder / SAMPLES).unlink(missing_ok=True)
        return False
    arrays = {
        "samples": np.stack(samples).astype(np.float32, copy=False),
        "timestamps": np.stack([item.ahead.to_numpy() for item in found.items]),
        "item_id": np.array([item.item_id for item in found.items]),
        "targets": np.array([item.columns for item in found.items]),
    }
    with replacing(folder / SAMPLES, KEPT) as file:
        np.savez(file, **arrays)
    return True


def write_scores(folder: Path, scores: pd.DataFrame) -> None:
    """scores.csv: a row a series, its scores and those of the seasonal naive."""
    with replacing(folder / SCORES, KEPT) as file:
        file.write(scores.to_csv(index=False, float_format="%.6g").encode())


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """forecast.json: what was asked, how long it took, what was noted."""
    text = json.dumps(settings, indent=1) + "\n"
    with replacing(folder / SETTINGS, KEPT) as file:
        file.write(text.encode())
