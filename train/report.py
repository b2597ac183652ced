"""The ONE report of a workdir: report.html, self-contained, and report.json with the same content.

It gathers what `train`, `eval`, `lower` and `parity` left, and computes what is missing (scores on
all test windows, baselines, sample windows). Every number in the page is in the JSON.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train import figures, program_figures
from train.analysis import Analysis, analyse, baseline_scores, window_numbers
from train.api import LoadedRun, load_run
from train.data import PARTS
from train.evaluate import Evaluation, evaluate
from train.machine import machine
from train.plots import draw
from train.recipes import eval_command, mole
from train.report_page import render
from train.workdir import dump, write_text

SCHEMA = 1
HTML, JSON = "report.html", "report.json"
LIMITS = (
    "Scores are of one run with one seed.",
    "P1 and P2 run the program on the CPU: P1 as JAX would compute it, P2 with the device's dtypes"
    " and rounding emulated. Neither is a run on a card.",
    "Time on a card was not measured anywhere in this report; the throughput is an estimate.",
)


def write_report(workdir: Path | str) -> list[Path]:
    """Write report.html and report.json into a workdir; returns their paths.

    ValueError when the folder holds no trained run.
    """
    run = load_run(workdir)
    if run.system is not mole:
        raise ValueError(
            f"{workdir} holds a run of {run.config.recipe}, and the report is about forecasts of"
            f" MoLE; see `{eval_command(run.config.recipe, workdir)}`"
        )
    evaluation, analysis = evaluate(run), analyse(run)
    programs = read_programs(run.workdir.path)
    content = make_content(run, evaluation, analysis, programs)
    pictures = draw(analysis, evaluation.usage) | program_pictures(programs)
    encoded = {name: base64.b64encode(data).decode() for name, data in pictures.items()}
    paths = [run.workdir.path / HTML, run.workdir.path / JSON]
    write_text(paths[0], render(content, encoded))
    write_text(paths[1], dump(content) + "\n")
    return paths


def make_content(
    run: LoadedRun, evaluation: Evaluation, analysis: Analysis, programs: Sequence[Mapping]
) -> dict[str, Any]:
    """All of the report but the pictures, as JSON values."""
    leaves = jax.tree.leaves(run.params)
    final = run.workdir.final()
    return {
        "schema": SCHEMA,
        "name": run.config.recipe,
        "machine": machine(),
        "config": asdict(run.config),
        "parameters": sum(int(np.size(leaf)) for leaf in leaves),
        "data": data_summary(run),
        "scores": {
            "part": evaluation.part,
            "windows": evaluation.num_windows,
            "model": evaluation.scores,
            "baselines": baseline_scores(run),
            "channels": evaluation.channels,
        },
        "training": {
            "finished": final is not None,
            "final": final or {},
            "best_epoch": analysis.best_epoch,
            "history": list(analysis.history),
            "learning_rates": list(analysis.rates),
        },
        "forecasts": window_numbers(analysis.windows, analysis.columns),
        "experts": evaluation.usage,
        "router": _router(analysis) if evaluation.usage else None,
        "programs": list(programs),
        "limits": list(LIMITS),
    }


def data_summary(run: LoadedRun) -> dict[str, Any]:
    """Rows, columns, dates, parts and what was repaired."""
    data, series = run.dataset, run.dataset.series
    return {
        "name": series.name,
        "source": Path(series.source).name,
        "stands_in_for": series.fallback_for,
        "rows": series.num_rows,
        "first": str(series.dates[0]),
        "last": str(series.dates[-1]),
        "step_seconds": series.step_seconds(),
        "columns": list(series.columns),
        "targets": list(series.columns[data.targets]),
        "mean": data.scaler.mean.tolist(),
        "scale": data.scaler.scale.tolist(),
        "parts": {
            part: {"rows": list(getattr(data.splits, part)), "windows": len(data.starts[part])}
            for part in PARTS
        },
        "notes": list(series.notes),
    }


def read_programs(workdir: Path) -> list[dict[str, Any]]:
    """Lowered programs in the workdir, the default policy first: what their folders say."""
    found = [_read_program(path.parent) for path in sorted(workdir.glob("*/manifest.json"))]
    programs = [one for one in found if one]
    return sorted(programs, key=lambda one: (one["policy"] != "bfloat16", one["folder"]))


def _read_program(folder: Path) -> dict[str, Any] | None:
    report, parity = _read(folder / "report.json"), _read(folder / "parity.json")
    if not report:
        return None
    levels = {row["level"]: {**row, "ops": []} for row in report.pop("parity", [])}
    levels |= {row["level"]: row for row in parity.get("reports", [])}
    manifest = _read(folder / "manifest.json")
    code = folder / "model.py"
    return {
        "folder": folder.name,
        **report,
        "parity": [levels[level] for level in sorted(levels)],
        "tolerances": manifest.get("tolerances", {}),
        "pruned": manifest.get("model", {}).get("pruned"),
        "code": forward_code(code.read_text()) if code.is_file() else "",
    }


def forward_code(text: str) -> str:
    """The function `forward` of a generated module."""
    start = text.find("def forward(")
    body = text[start:] if start >= 0 else text
    return body.split("\n\n\n")[0].rstrip()


def program_pictures(programs: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """parity:FOLDER and cost:FOLDER of each program for which the numbers are there."""
    pictures = {}
    for one in programs:
        folder, policy = one["folder"], one["policy"]
        rows = {f"{row['level']} {policy}": row["ops"] for row in one["parity"] if row["ops"]}
        if rows:
            pcc = one["tolerances"].get("pcc")
            limit = (2 * (1 - pcc)) ** 0.5 if pcc else None
            pictures[f"parity:{folder}"] = figures.png(program_figures.parity(rows, limit))
        chip = one["chips"].get(one["arch"], {})
        if one["ops"] and chip:
            board = chip["throughput"]["board"]
            pictures[f"cost:{folder}"] = figures.png(program_figures.op_costs(one["ops"], board))
    return pictures


def _router(analysis: Analysis) -> dict[str, Any]:
    """The router's weights that the picture shows, by window and expert, channels averaged."""
    return {
        "first_step": [str(date) for date in analysis.gate_dates],
        "mean_over_channels": analysis.gates.mean(axis=2).round(4).tolist(),
    }


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of a folder, empty when it is absent; ValueError when it is damaged."""
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; lower the run again") from error
