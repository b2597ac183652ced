"""Recorded tensors of MoE language models: whole models, routing and capacity cases.

A folder holds `<file>.json` beside `<file>.safetensors`; the json gives the parameters of every
case, a tensor `<case>.<name>` belongs to the case. What a case is follows from the parameters and
the tensors it has, not from its name. A folder inside it that holds config.json is a model.
"""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import jax

from train.reference.lm_models import check_model
from train.reference.moe_routing import check_of
from train.reference.rows import Case, Findings, Row, cases, check_case


def recognises(folder: Path) -> bool:
    """Whether the folder holds routing cases, or models with a config beside their weights."""
    return any(_parameters(path) for path in folder.glob("*.safetensors")) or any(_models(folder))


def check(folder: Path, only: str | None = None) -> Iterator[Row]:
    """The rows of every case, named <file>.<case>, and of every model, named as its folder."""
    for file in cases(folder):
        if isinstance(file, Row):
            if only is None or fnmatch(file.case, only):
                yield file
            continue
        for case, parameters in _split(file):
            if only is None or fnmatch(case.name, only):
                with jax.default_matmul_precision("highest"):
                    yield from check_case(case, lambda case, p=parameters: _check(case, p))
    for model in _models(folder):
        if only is None or fnmatch(model.name, only):
            yield from check_model(model)


def _models(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/config.json"))


def _parameters(path: Path) -> dict[str, dict]:
    """Parameters by case from the json beside a file; empty if there is none of this kind."""
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and all(map(_is_case, found.values())) else {}


def _is_case(parameters) -> bool:
    return isinstance(parameters, dict) and ("E" in parameters or "rule" in parameters)


def _split(file: Case) -> Iterator[tuple[Case, dict | None]]:
    """The cases of a file with their parameters; None for tensors without any."""
    parameters = _parameters(file.folder / f"{file.name}.safetensors")
    names = sorted({name.split(".")[0] for name in file.tensors} | parameters.keys())
    for name in names:
        tensors = file.under(f"{name}.") or {
            key: tensor for key, tensor in file.tensors.items() if key == name
        }
        case = Case(f"{file.name}.{name}", file.folder, tensors, {})
        yield case, parameters.get(name)


def _check(case: Case, parameters: dict | None) -> Findings:
    if parameters is None:
        return Findings(note=f"no parameters in the json beside {case.name.split('.')[0]}")
    check = check_of(set(case.tensors), parameters)
    return (
        Findings(note="not a case that this check knows")
        if check is None
        else check(case, parameters)
    )
