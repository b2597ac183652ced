"""The pictures of a trained run, as PNG: by name for the report, as files for `moejax eval`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from train import figures
from train.analysis import Analysis, analyse
from train.api import LoadedRun
from train.data import Part
from train.evaluate import Evaluation, other_file

MAX_EXPERT_ROWS = 4


def draw(analysis: Analysis, usage: Mapping[str, Any] | None) -> dict[str, bytes]:
    """Name -> PNG; the experts' pictures only where there are several (`usage` is given)."""
    windows, columns = analysis.windows, analysis.columns
    drawn = {"forecasts": figures.forecasts(windows, columns)}
    if analysis.history:
        drawn["learning_curves"] = figures.learning_curves(
            analysis.history, analysis.rates, analysis.best_epoch
        )
    if usage:
        drawn["expert_usage"] = figures.expert_usage(usage)
        drawn["router_weights"] = figures.router_weights(
            analysis.gate_dates, analysis.gates, analysis.gate_columns
        )
        some = figures.spread(len(columns), MAX_EXPERT_ROWS)
        drawn["expert_forecasts"] = figures.expert_forecasts(
            [window.channels(some) for window in windows[:2]], [columns[i] for i in some]
        )
    return {name: figures.png(figure) for name, figure in drawn.items()}


def save_plots(run: LoadedRun, evaluation: Evaluation) -> list[Path]:
    """Write plots/NAME.png into the run's workdir; returns the paths."""
    if evaluation.part == "all":
        analysis = analyse(run, "test", other_file(run, evaluation.source))
    else:
        analysis = analyse(run, cast(Part, evaluation.part))
    folder = run.workdir.path / "plots"
    folder.mkdir(exist_ok=True)
    paths = []
    for name, picture in draw(analysis, evaluation.usage).items():
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes(picture)
    return paths
