"""Forecast the series of a CSV with a finished model.

  moejax forecast moirai-moe --checkpoint CHECKPOINT --csv load.csv --horizon 96 --out runs/ahead
  moejax forecast seasonal-naive --csv sales.csv --item-column shop --horizon 28
  moejax forecast moirai-moe --checkpoint runs/mine --csv load.csv --horizon 24 \\
      --target-columns load --known-covariates temperature --past-covariates price

A long CSV has a row for each item and time: a column item_id (or --item-column), a timestamp, a
target. In a wide one every column of numbers beside the timestamp is a series. Empty cells and
absent rows are missing values. A series ends at the last row with a target; covariates known ahead
need rows beyond it, as many as the horizon. A bad series is listed, the others are forecast.

Written to --out: quantiles.csv (item_id, timestamp, mean, quantiles), samples.npz (samples [series,
sample, step, target], timestamps, item_id, targets), bad_series.csv, plots/SERIES.png with bands of
50 % and 90 %, forecast.json (settings). With --hold-out the last steps of the series are forecast
from those before, and scored beside the seasonal naive: scores.csv, and truth in the plots.
"""

import argparse

HELP = "forecast the series of a CSV"
QUANTILES = tuple(level / 10 for level in range(1, 10))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("system", metavar="SYSTEM", help="moirai-moe, or seasonal-naive, which has no checkpoint")
    add("--checkpoint", default="", metavar="DIR", help="published folder, hub id, or workdir")
    add("--csv", required=True, metavar="FILE", help="the series, .csv or .csv.gz")
    add("--horizon", type=int, required=True, metavar="N", help="steps ahead")
    add("--out", default="runs/forecast", metavar="DIR", help="for the results (%(default)s)")
    add("--context", type=int, metavar="N", help="steps of history to use; what the model can")
    add("--samples", type=int, default=100, metavar="N", help="paths of a series (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of what is drawn (%(default)s)")
    add("--quantiles", type=float, nargs="+", default=QUANTILES, metavar="Q", help="0.1 to 0.9")
    add("--season", type=int, default=0, metavar="N", help="of seasonal-naive; by frequency")
    add("--hold-out", action="store_true", help="keep the last steps back, and score them")
    add("--max-plots", type=int, default=20, metavar="N", help="series to draw (%(default)s)")
    group = parser.add_argument_group("the CSV").add_argument
    group("--separator", default=",", metavar="C", help="between cells (%(default)r)")
    group("--decimal", default=".", metavar="C", help="in numbers, . or , (%(default)s)")
    group("--item-column", default="", metavar="NAME", help="makes it long; item_id is found")
    group("--timestamp-column", default="", metavar="NAME", help="found by name and content")
    group("--target-columns", nargs="+", default=[], metavar="NAME", help="what to forecast")
    group("--known-covariates", nargs="+", default=[], metavar="NAME", help="known ahead too")
    group("--past-covariates", nargs="+", default=[], metavar="NAME", help="known up to now")
    group("--multivariate", action="store_true", help="the targets are variates of one series")
    group("--freq", default="", metavar="F", help="h, 15min, D, B, W-SUN, MS ...; inferred")
    group("--timestamp-format", default="", metavar="F", help="such as %%d/%%m/%%Y; inferred")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from train.forecasts.columns import ColumnOptions
    from train.forecasts.run import ForecastOptions, run_forecast

    columns = ColumnOptions(
        item=args.item_column,
        timestamp=args.timestamp_column,
        targets=tuple(args.target_columns),
        known_ahead=tuple(args.known_covariates),
        past_only=tuple(args.past_covariates),
        multivariate=args.multivariate,
        freq=args.freq,
        timestamp_format=args.timestamp_format,
        hold_out=args.hold_out,
    )
    options = ForecastOptions(
        system=args.system,
        checkpoint=args.checkpoint,
        csv=args.csv,
        horizon=args.horizon,
        out=args.out,
        separator=args.separator,
        decimal=args.decimal,
        context_length=args.context,
        num_samples=args.samples,
        seed=args.seed,
        season=args.season,
        quantiles=tuple(args.quantiles),
        max_plots=args.max_plots,
    )
    run_forecast(options, columns, Console())
    return 0
