"""`moejax forecast`: a CSV to a folder of forecasts."""

import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from train.forecasts import write
from train.forecasts.columns import ColumnOptions
from train.forecasts.csv import read_csv
from train.forecasts.frames import (
    Forecasts,
    describe_bad,
    forecast_items,
    require_levels,
)
from train.forecasts.holdout import score_held_out
from train.forecasts.items import SeriesTable
from train.forecasts.plot import save_plots
from train.forecasts.score import table as print_scores
from train.forecasts.systems import LoadOptions, load_forecaster
from train.forecasts.time_axis import season_length
from train.progress import counting_bar

MAX_SEED = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class ForecastOptions:
    """What `moejax forecast` is asked, but for the columns; `season` 0 is that of the table."""

    system: str
    csv: str
    horizon: int
    out: str
    checkpoint: str = ""
    separator: str = ","
    decimal: str = "."
    context_length: int | None = None
    num_samples: int = 100
    seed: int = 0
    season: int = 0
    quantiles: tuple[float, ...]
    max_plots: int = 20

    def __post_init__(self) -> None:
        require_levels(self.quantiles)
        least = {"horizon": 1, "num_samples": 1, "seed": 0, "season": 0, "max_plots": 0}
        if self.context_length is not None:
            least["context_length"] = 1
        for name, bound in least.items():
            value = getattr(self, name)
            if not bound <= value <= MAX_SEED:
                raise ValueError(f"{name} is {value}; it must be a whole number >= {bound}")


def run_forecast(options: ForecastOptions, columns: ColumnOptions, console: Console) -> Forecasts:
    """Read, forecast, write; ValueError for bad input, also where no series is left."""
    table = read_csv(
        options.csv,
        columns,
        options.horizon,
        separator=options.separator,
        decimal=options.decimal,
    )
    folder = write.prepare_folder(options.out)
    for note in table.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    started = time.perf_counter()
    if table.items:
        with console.status(f"loading {options.system}"):
            forecaster = load_forecaster(options.system, options.checkpoint, _load(options, table))
        with counting_bar(console, "forecast", len(table.items), "series") as progress:
            found = forecast_items(
                forecaster,
                table,
                options.horizon,
                num_samples=options.num_samples,
                seed=options.seed,
                progress=progress,
            )
    else:
        found = Forecasts(items=(), forecasts=(), bad=table.bad)
    seconds = time.perf_counter() - started
    write.write_bad(folder, found)
    if not found.items:
        raise ValueError(f"{describe_bad(found.bad)}\nAll are in {folder / write.BAD}")
    with console.status("writing"):
        write.write_quantiles(folder, found, options.quantiles, table.named_targets)
        has_samples = write.write_samples(folder, found)
        scores = _score(folder, options, found, console) if columns.hold_out else {}
        settings = _settings(options, columns, table, found, seconds)
        write.write_settings(folder, {**settings, "scores": scores})
    written = [write.QUANTILES, *([write.SAMPLES] if has_samples else []), write.BAD]
    written += [write.SCORES] if scores else []
    shown = min(options.max_plots, len(found.items))
    if shown:
        with counting_bar(console, "drawing", shown, "series") as progress:
            save_plots(folder, found, shown, progress)
        written.append("plots/")
    _summary(console, options, found, seconds, [*written, write.SETTINGS])
    return found


def _load(options: ForecastOptions, table: SeriesTable) -> LoadOptions:
    seasons = [season_length(item.offset) for item in table.items]
    usual = int(np.bincount(seasons).argmax())
    return LoadOptions(
        prediction_length=options.horizon,
        season=options.season or usual,
        context_length=options.context_length,
    )


def _score(
    folder: Path, options: ForecastOptions, found: Forecasts, console: Console
) -> dict[str, Any]:
    scores, by_series = score_held_out(found, options.system, options.season)
    write.write_scores(folder, by_series)
    print_scores(scores, console, f"the last {options.horizon} steps, held out")
    return scores


def _settings(
    options: ForecastOptions,
    columns: ColumnOptions,
    table: SeriesTable,
    found: Forecasts,
    seconds: float,
) -> dict[str, Any]:
    return {
        **asdict(options),
        "columns": asdict(columns),
        "frequencies": sorted({item.offset.freqstr for item in table.items}),
        "num_series": len(found.items),
        "num_bad_series": len(found.bad),
        "notes": table.notes,
        "seconds": round(seconds, 3),
        "version": version("moejax"),
    }


def _summary(
    console: Console, options: ForecastOptions, found: Forecasts, seconds: float, written: list[str]
) -> None:
    """What was done, what was left out, where it lies, what to do next."""
    num_series = len(found.items)
    console.print(
        f"{num_series} series, {options.horizon} steps each, in {seconds:.1f} s "
        f"({num_series / max(seconds, 1e-9):,.1f} series/s, loading and compiling included)",
        highlight=False,
        soft_wrap=True,
    )
    if found.bad:
        console.print(describe_bad(found.bad), highlight=False, soft_wrap=True, markup=False)
    out = options.out
    console.print(
        f"Written: {out} ({', '.join(written)})", soft_wrap=True, highlight=False, markup=False
    )
    plots = min(options.max_plots, num_series)
    if plots < num_series:
        console.print(
            f"{plots} of {num_series} series are drawn; --max-plots draws more", highlight=False
        )
    look = f"look at {out}/plots, or " if plots else ""
    console.print(
        f"Next: {look}read {out}/{write.QUANTILES} with pandas.read_csv",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
