"""Recorded tokens of series, tables of bins, and summaries of samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moejax.forecasting.chronos.pipeline import lower_median, summarise
from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins, stack_left
from moejax.models.chronos_config import ChronosConfig
from train.reference.rows import Case, Computed, Findings

EXACT = {"atol": 0.0}
VALUE = {"atol": 0.0, "rtol": 1e-6}
SUMMARY = {"atol": 1e-6, "rtol": 1e-6}


def split_cases(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Tensors by what stands before the first slash of their names."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        part, _, rest = name.partition("/")
        found.setdefault(part, {})[rest] = array
    return found


def check_tokenizer(case: Case, entry: Mapping[str, Any] | None) -> Findings:
    """`entry`: the part's config and cases; None for tensors that belong to no config."""
    if entry is None:
        return _check_loose(case)
    tokenizer = MeanScaleUniformBins(ChronosConfig.from_fields(entry["config"]))
    found = Findings(
        computed={
            "centers": Computed(tokenizer.centers, **EXACT),
            "boundaries": Computed(tokenizer.boundaries, **EXACT),
        }
    )
    if "edge_values" in case.tensors:
        found.inputs.add("edge_values")
        ids = tokenizer.ids(case.tensor("edge_values")[None], np.ones(1, np.float32))[0]
        found.computed["edge_ids"] = Computed(ids, **EXACT)
    every_id = np.arange(tokenizer.config.n_tokens)[None]
    for match in case.matching(r"decode_all_ids_scale(.+)"):
        values = tokenizer.decode(every_id, np.array([float(match[1])]))[0]
        found.computed[match[0]] = Computed(values, **VALUE)
    for name in entry.get("cases", ()):
        _check_series(case, name, tokenizer, found)
    return found


def _check_series(case: Case, name: str, tokenizer: MeanScaleUniformBins, found: Findings) -> None:
    tokens = tokenizer.context(case.tensor(f"{name}/context"))
    length = case.tensor(f"{name}/decoded").shape[1]
    values = {
        "ids": Computed(tokens.ids, **EXACT),
        "mask": Computed(tokens.mask, **EXACT),
        "scale": Computed(tokens.scale, **VALUE),
        "decoded": Computed(tokenizer.decode(tokens.ids[:, :length], tokens.scale), **VALUE),
    }
    if f"{name}/label" in case.tensors:
        label = tokenizer.label(case.tensor(f"{name}/label"), tokens.scale)
        values["label_ids"] = Computed(label.ids, **EXACT)
        values["label_mask"] = Computed(label.mask, **EXACT)
    found.inputs |= {f"{name}/context", f"{name}/label"}
    found.computed |= {f"{name}/{part}": value for part, value in values.items()}


def _check_loose(case: Case) -> Findings:
    """Series stacked into rows, and summaries of samples."""
    found = Findings()
    series = {match[0]: case.tensors[match[0]] for match in case.matching(r"in\d+")}
    if series:
        found.inputs |= series.keys()
        ordered = [series[name] for name in sorted(series, key=lambda name: int(name[2:]))]
        found.computed["padded"] = Computed(stack_left(ordered), **EXACT)
    if "samples" in case.tensors:
        samples = case.tensors["samples"]
        found.inputs.add("samples")
        quantiles, mean = summarise(samples, [round(0.1 * tenth, 1) for tenth in range(1, 10)])
        found.computed |= {
            "median_torch_lower": Computed(lower_median(samples), **EXACT),
            "quantiles": Computed(quantiles, **SUMMARY),
            "mean": Computed(mean, **SUMMARY),
        }
    return found
