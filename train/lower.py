"""Lower a trained run, or a function of the user's own, to a ttnn program folder."""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lowering
from lowering.exporter import Check
from lowering.ir import Arch, Policy
from train.api import LoadedRun, load_run
from train.evaluate import forecast
from train.lower_chronos import find_chronos, lower_chronos
from train.lower_lm import find_lm, lower_lm
from train.lower_moirai import find_moirai, lower_moirai
from train.step import Scorer

DEFAULT_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is lowered: function(params, *inputs.values()) and where it comes from."""

    name: str
    function: Callable[..., Any]
    params: Any
    inputs: Mapping[str, Any]
    model: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Something that can be lowered.

    `find`: what a source's text stands for, None where it is of another kind. `lower`: (what was
    found, folder, arch=, policy=, check=, and the options named in `takes`) -> reports by name.
    """

    what: str
    find: Callable[[str], Any]
    lower: Callable[..., dict[str, dict[str, Any]]]
    takes: tuple[str, ...] = ()


def lower_source(
    source: str,
    out: str | Path,
    *,
    arch: Arch = "wormhole_b0",
    policy: Policy = "bfloat16",
    check: Check = "auto",
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Lower a workdir, the folder of a published model, or `package.module:function` that returns
    (function, params, inputs).

    `options`: what the kind of source takes (KINDS), None where it is left out. Returns the report
    of each program by name; ValueError for a source of no kind, or an option that its kind does not
    take.
    """
    given = {name: value for name, value in options.items() if value is not None}
    kinds = ((kind, kind.find(source)) for kind in KINDS)
    kind, found = next((kind, found) for kind, found in kinds if found is not None)
    if unknown := [name for name in given if name not in kind.takes]:
        raise ValueError(
            f"{source} is {kind.what}, which takes no {', '.join(unknown)}; it takes"
            f" {', '.join(kind.takes) or 'none'}"
        )
    return kind.lower(found, out, arch=arch, policy=policy, check=check, **given)


def lower_run(
    run: LoadedRun,
    out: str | Path,
    *,
    batch: int = DEFAULT_BATCH,
    prune: float = 0.0,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """A trained forecaster's program. `prune`: leave out experts whose weight stays under it on the
    validation windows; the report then has the test scores of both.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1")
    run, cost = prune_run(run, prune) if prune else (run, None)
    found = from_run(run, batch)
    model = found.model | ({"pruned": cost} if cost else {})
    return _export(replace(found, model=model), out, **options)


def _export(found: Source, out: str | Path, **options: Any) -> dict[str, dict[str, Any]]:
    arguments = found.function, found.params, found.inputs
    report = lowering.export(*arguments, out, name=found.name, model=found.model, **options)
    return {found.name: report}


def _find_function(source: str) -> Source | None:
    return _from_import(source) if ":" in source and not Path(source).exists() else None


def from_run(run: LoadedRun, batch: int) -> Source:
    """The forecast of a run's best parameters, with its first test windows as the sample."""
    starts = run.task.indices["test"][:batch]
    cut = {
        key: np.asarray(array)
        for key, array in run.task.cut(run.task.arrays, jax.numpy.asarray(starts)).items()
    }
    function, names = run.system.forecast_function(run.config)
    return Source(
        name=run.config.recipe,
        function=function,
        params=run.params,
        inputs={name: cut[name] for name in names},
        model=asdict(run.config.model),
    )


def prune_run(run: LoadedRun, threshold: float) -> tuple[LoadedRun, dict[str, Any]]:
    """The run without rarely used experts, and what that costs in test scores."""
    gates = forecast(run, run.task.indices["val"])[1]
    left_out = run.system.rarely_used(gates, threshold)
    kept = [k for k in range(gates.shape[1]) if k not in left_out]
    model, params = run.system.keep_experts(run.config.model, run.params, kept)
    config = replace(run.config, model=model)
    task = run.system.make_task(config, run.dataset)
    smaller = replace(run, config=config, task=task, params=params)
    cost = {
        "threshold": threshold,
        "experts_left_out": left_out,
        "largest_weight_of_each_expert": gates.max(axis=(0, 2)).tolist(),
        "test_scores": _scores(run),
        "test_scores_pruned": _scores(smaller),
    }
    return smaller, cost


def _scores(run: LoadedRun) -> dict[str, float]:
    return run.task.scores(Scorer(run.task).means(run.params, run.task.indices["test"]))


def _from_import(source: str) -> Source:
    """The user's `package.module:function`, looked up in the working directory too."""
    module, _, attribute = source.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{source!r} is no workdir, and cannot be imported as module:function: {error}"
        ) from error
    made = make()
    if not isinstance(made, tuple) or len(made) != 3 or not isinstance(made[2], Mapping):
        raise ValueError(
            f"{source} must return (function, params, inputs) with inputs a dict of arrays; "
            f"it returned {type(made).__name__}"
        )
    function, params, inputs = made
    return Source(
        name=attribute, function=function, params=params, inputs=jax.tree.map(np.asarray, inputs)
    )


# the first whose `find` knows the source; the last one's says what is wrong with it
KINDS = (
    Kind(
        what="a MOIRAI-MoE",
        find=find_moirai,
        lower=lower_moirai,
        takes=(
            *("batch", "context", "horizon", "patch_size"),
            *("targets", "known_ahead", "past_only"),
        ),
    ),
    Kind(
        what="a Chronos",
        find=find_chronos,
        lower=lower_chronos,
        takes=("batch", "context", "samples"),
    ),
    Kind(what="a language model", find=find_lm, lower=lower_lm, takes=("batch", "prompt", "slots")),
    Kind(what="a function", find=_find_function, lower=_export),
    Kind(what="a run of a forecaster", find=load_run, lower=lower_run, takes=("batch", "prune")),
)
