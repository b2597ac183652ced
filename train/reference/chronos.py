"""Recorded runs of Chronos models: folders with a checkpoint and io.safetensors, and a tokenizer's
cases. What a folder holds is found out from the tensors.
"""

import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import jax
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from train.reference.chronos2 import check_second
from train.reference.chronos_bolt import check_bolt
from train.reference.chronos_moe import check_mixture
from train.reference.chronos_t5 import check_t5
from train.reference.chronos_tokenizer import check_tokenizer, split_cases
from train.reference.rows import Case, Findings, Row, check_case

_RECORDED, _TOKENIZER, _CASES = "io.safetensors", "configs.json", "cases.safetensors"
_CHRONOS = ("chronos_config", "moe")

# a tensor that only this kind of recording has -> its check
_KINDS: dict[str, Callable[[Case], Findings]] = {
    "router_logits": check_mixture,
    "quantile_preds": check_bolt,
    "uni_n1": check_second,
    "decoder_input_ids": check_t5,
}


def recognises(folder: Path) -> bool:
    """Whether there are recorded Chronos models or tokenizers in the folder or below it."""
    return any(True for _ in _folders(folder))


def check(folder: Path, only: str | None = None) -> Iterator[Row]:
    """The rows of every case, named by its folder; a tokenizer's <folder>.<config>."""
    for path in _folders(folder):
        name = path.relative_to(folder).as_posix() if path != folder else path.name
        if (path / _RECORDED).is_file():
            if only is None or fnmatch(name, only):
                yield from _check_model(path, name)
        else:
            yield from _check_tokenizer(path, name, only)


def _folders(folder: Path) -> Iterator[Path]:
    paths = {path.parent for path in folder.rglob(_RECORDED) if _is_chronos(path.parent)}
    paths |= {path.parent for path in folder.rglob(_TOKENIZER) if (path.parent / _CASES).is_file()}
    yield from sorted(paths)


def _is_chronos(folder: Path) -> bool:
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and any(name in fields for name in _CHRONOS)


def _check_model(folder: Path, name: str) -> Iterator[Row]:
    try:
        case = Case(name, folder, load_file(folder / _RECORDED), {})
    except (SafetensorError, OSError) as error:
        yield Row(name, "(file)", ok=False, note=f"cannot be read: {error}")
        return
    with jax.default_matmul_precision("highest"):
        yield from check_case(case, _check)


def _check(case: Case) -> Findings:
    for tensor, check_kind in _KINDS.items():
        if tensor in case.tensors:
            return check_kind(case)
    return Findings(note="neither T5 nor Bolt nor a mixture")


def _check_tokenizer(folder: Path, name: str, only: str | None) -> Iterator[Row]:
    try:
        configs = json.loads((folder / _TOKENIZER).read_text(encoding="utf-8"))
        with safe_open(folder / _CASES, "np"):
            tensors = load_file(folder / _CASES)
    except (SafetensorError, OSError, ValueError) as error:
        yield Row(name, "(file)", ok=False, note=f"cannot be read: {error}")
        return
    for part, own in split_cases(tensors).items():
        case = Case(f"{name}.{part}", folder, own, {})
        if only is None or fnmatch(case.name, only) or fnmatch(name, only):
            yield from check_case(case, lambda case, p=part: check_tokenizer(case, configs.get(p)))
