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
from moejax.models.moe_lm import LMConfig
from train.api import LoadedRun, load_run
from train.evaluate import forecast
from train.lower_lm import LMSource, from_checkpoint, from_lm_run, is_checkpoint, lower_lm
from train.step import Scorer
from train.workdir import Workdir

DEFAULT_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is lowered: function(params, *inputs.values()) and where it comes from."""

    name: str
    function: Callable[..., Any]
    params: Any
    inputs: Mapping[str, Any]
    model: dict[str, Any] = field(default_factory=dict)


def lower_source(
    source: str,
    out: str | Path,
    *,
    arch: Arch = "wormhole_b0",
    policy: Policy = "bfloat16",
    check: Check = "auto",
    batch: int | None = None,
    prune: float = 0.0,
    prompt: int | None = None,
    slots: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Lower a workdir, the folder of a published language model, or `package.module:function` that
    returns (function, params, inputs).

    `prune`: leave out experts whose weight stays under it on the validation windows; the report
    then has the test scores of both. `prompt`, `slots`: of a language model, see `lower_lm`.
    Returns the report of each program by name; ValueError for a source that is none of these.
    """
    options: dict[str, Any] = {"arch": arch, "policy": policy, "check": check}
    language = _language_model(source)
    if language is not None:
        if prune:
            raise ValueError("experts can be left out of a forecaster only; leave --prune out")
        sizes = {"batch": batch or 1, "prompt": prompt, "slots": slots}
        return lower_lm(language, out, **options, **sizes)
    if prompt or slots:
        raise ValueError("prompt and slots are sizes of a language model; this source is none")
    if ":" in source and not Path(source).exists():
        if prune:
            raise ValueError("experts can be left out of a workdir's model only")
        found, cost = _from_import(source), None
    else:
        run = load_run(source)
        run, cost = prune_run(run, prune) if prune else (run, None)
        found = from_run(run, batch or DEFAULT_BATCH)
    model = found.model | ({"pruned": cost} if cost else {})
    report = lowering.export(
        found.function, found.params, found.inputs, out, name=found.name, model=model, **options
    )
    return {found.name: report}


def _language_model(source: str) -> LMSource | None:
    if is_checkpoint(source):
        return from_checkpoint(source)
    if not Path(source).is_dir():
        return None
    language = isinstance(Workdir(source).read_config().model, LMConfig)
    return from_lm_run(load_run(source)) if language else None


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
