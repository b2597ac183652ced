"""Where the rows come from: the published sets, a set that a dependency ships, the user's own CSV.

The built-in sets are used as published, irregular stamps and sentinel values included, so that
scores compare with the literature. A user's CSV is checked strictly by `train.tables`.
"""

import gzip
import hashlib
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from train.tables import Series, nearest, read_published, read_table

Mode = Literal["M", "S", "MS"]
SplitKind = Literal["auto", "months", "ratio"]
TEMPERATURES = "temperatures"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which series, which columns of it, and how it is cut.

    `mode`: M forecasts every column from all, S the target from itself, MS the target from all.
    `split`: months = 12/4/4 of 30 days each, ratio = 70/10/20 %; auto = months for ETT, else ratio.
    `freq`: h = 4 calendar features, t = 5 (minute first). `csv` wins over `name`.
    """

    name: str = "etth1"
    csv: str = ""
    separator: str = ","
    date_column: str = ""
    columns: tuple[str, ...] = ()
    mode: Mode = "M"
    target: str = ""
    freq: Literal["h", "t"] = "h"
    split: SplitKind = "auto"
    interpolate: bool = False
    drop_constant: bool = False
    allow_download: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("M", "S", "MS"):
            raise ValueError(f"data.mode is {self.mode!r}; allowed: 'M', 'S', 'MS'")


@dataclass(frozen=True)
class Published:
    """A published CSV: hash of the plain CSV, where it can be fetched, how it is split."""

    sha256: str
    url: str
    member: str = ""
    archive_sha256: str = ""
    months: bool = False
    note: str = ""


_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small"
PUBLISHED: dict[str, Published] = {
    "etth1": Published(
        "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
        f"{_ETT}/ETTh1.csv",
        months=True,
    ),
    "etth2": Published(
        "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
        f"{_ETT}/ETTh2.csv",
        months=True,
    ),
    "weather": Published(
        "34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63",
        "https://raw.githubusercontent.com/Kyushu-U-AI/CME-Mamba/"
        "5a3c60cede21a6eac73f6c60b7bf347b1c047973/dataset/weather.zip",
        member="weather/weather.csv",
        archive_sha256="fe7698028e19d0325bad53cefa883d35d48362b457e62f0b958c9d51ffd134d7",
        note="used as published: one repeated stamp, one gap, sentinel values -9999",
    ),
}
ETTM1_HEAD = "ETTm1_head.csv"
ETTM1_HEAD_SHA256 = "b7a329382497d83c18c79dda4fff0e71a1dfcade00e6ed5d22c8ecec7899f9a0"
_FILES = {"etth1": "ETTh1.csv", "etth2": "ETTh2.csv", "weather": "weather.csv"}


def load_series(config: DataConfig) -> Series:
    """The series that the config names, columns chosen and ordered (in MS mode the target last).

    What was replaced, ignored or repaired is in `series.notes`. ValueError for every bad input.
    """
    if config.csv:
        series = read_table(
            Path(config.csv),
            separator=config.separator,
            date_column=config.date_column,
            columns=(*config.columns, config.target) if config.columns else (),
            interpolate=config.interpolate,
        )
    elif config.name == "csv":
        raise ValueError("data.csv is empty; give your file with --set data.csv=FILE")
    elif config.name in PUBLISHED:
        series = _load_published(config.name, config.allow_download)
    elif config.name == TEMPERATURES:
        series = load_temperatures()
    else:
        raise _unknown_name(config.name)
    return _select(series, config)


def uses_months(config: DataConfig, series: Series) -> bool:
    """Whether the split is 12/4/4 months rather than 70/10/20 %."""
    if config.split != "auto":
        return config.split == "months"
    return series.name in PUBLISHED and PUBLISHED[series.name].months


def load_temperatures() -> Series:
    """Hourly temperatures of Seattle and San Francisco in 2010, from the package vega_datasets."""
    import vega_datasets

    folder = Path(vega_datasets.__file__).parent / "_data"
    columns = {}
    for city, file in (("Seattle", "seattle-temps.csv"), ("San Francisco", "sf-temps.csv")):
        frame = pd.read_csv(folder / file)
        columns[city] = pd.Series(frame["temp"].to_numpy(), index=pd.to_datetime(frame["date"]))
    frame = pd.DataFrame(columns)
    dates = pd.date_range(frame.index[0], frame.index[-1], freq="h")
    filled = frame.reindex(dates).interpolate()
    missing = len(dates) - len(frame)
    return Series(
        name=TEMPERATURES,
        num_targets=2,
        values=filled.to_numpy(np.float64),
        dates=dates.to_numpy("datetime64[s]"),
        columns=tuple(frame.columns),
        source="vega_datasets",
        notes=(f"{missing} missing hour (daylight saving) interpolated",),
    )


def load_ettm1_head() -> Series | None:
    """The first 19557 rows of ETTm1 as published, None where MOEJAX_DATA has no ETTm1_head.csv.

    Every full hour of it is a training row of ETTh1. ValueError for another file of that name.
    """
    found = _find_local(ETTM1_HEAD)
    if found is None:
        return None
    text = _read_bytes(found)
    if hashlib.sha256(text).hexdigest() != ETTM1_HEAD_SHA256:
        raise ValueError(f"{found} is not the known head of ETTm1; rename it, or use data.csv")
    return read_published(text, name="ettm1_head", source=str(found))


def _load_published(name: str, allow_download: bool) -> Series:
    spec, file = PUBLISHED[name], _FILES[name]
    found = _find_local(file)
    if found is not None:
        text, source = _read_bytes(found), str(found)
    elif allow_download:
        try:
            text, source = _download(name, spec), spec.url
        except Exception as error:  # any network, proxy, TLS or disk failure leads to the fallback
            reason = str(error).splitlines()[0][:80] if isinstance(error, ValueError) else ""
            kind = type(error).__name__
            return _fallback(name, f"download failed ({kind}{': ' if reason else ''}{reason})")
    else:
        return _fallback(name, "MOEJAX_DATA names no folder that holds it, and downloads are off")
    digest = hashlib.sha256(text).hexdigest()
    if digest != spec.sha256:
        raise ValueError(
            f"{source} is not the published {file}: its sha256 is {digest}, not "
            f"{spec.sha256}; replace it, or train on it as your own with --set data.csv=FILE"
        )
    series = read_published(text, name=name, source=source)
    return replace(series, notes=(spec.note,)) if spec.note else series


def _find_local(file: str) -> Path | None:
    folder = os.environ.get("MOEJAX_DATA", "")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise ValueError(f"MOEJAX_DATA is {folder!r}, which is not a folder; correct or unset it")
    for name in (file, f"{file}.gz"):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


def _download(name: str, spec: Published) -> bytes:
    import pooch

    pooch.get_logger().setLevel("ERROR")
    folder = pooch.os_cache("moejax")
    known = f"sha256:{spec.archive_sha256 or spec.sha256}"
    file = f"{name}.zip" if spec.member else f"{name}.csv"
    fetched = Path(pooch.retrieve(spec.url, known_hash=known, fname=file, path=folder))
    if not spec.member:
        return fetched.read_bytes()
    import zipfile

    with zipfile.ZipFile(io.BytesIO(fetched.read_bytes())) as archive:
        return archive.read(spec.member)


def _fallback(name: str, reason: str) -> Series:
    series = load_temperatures()
    note = (
        f"{name} is not available: {reason}. Using the hourly temperatures of Seattle and San "
        f"Francisco (2010) instead: scores do not compare with {name}. For the real data set "
        f"MOEJAX_DATA to a folder that holds {_FILES[name]} (or {_FILES[name]}.gz)"
    )
    return replace(series, notes=(note, *series.notes), fallback_for=name)


def _unknown_name(name: str) -> ValueError:
    known = [*PUBLISHED, TEMPERATURES, "csv"]
    return ValueError(f"unknown data set {name!r}.{nearest(name, known)} Known: {', '.join(known)}")


def _select(series: Series, config: DataConfig) -> Series:
    """Columns by `config.columns` and mode; the target, if one is used, becomes the last column."""
    names = list(config.columns) or list(series.columns)
    _require_columns(names, series, "data.columns")
    if config.mode == "M":
        if config.target:
            raise ValueError(
                "data.target is set but data.mode is 'M', which forecasts every column"
            )
        order, targets = names, len(names)
    else:
        target = config.target or ("OT" if "OT" in names else names[-1])
        _require_columns([target], series, "data.target")
        rest = [name for name in names if name != target] if config.mode == "MS" else []
        order, targets = [*rest, target], 1
    index = [series.columns.index(name) for name in order]
    return replace(
        series, values=series.values[:, index], columns=tuple(order), num_targets=targets
    )


def _require_columns(names: list[str], series: Series, what: str) -> None:
    for name in names:
        if name not in series.columns:
            raise ValueError(
                f"{what} names {name!r}, not a numeric column of {series.source}."
                f"{nearest(name, series.columns)} Columns: {', '.join(series.columns)}"
            )
