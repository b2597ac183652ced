"""Evaluation of a trained language model: bits per byte of a part or of other text, who works.

Axes: L layers with experts, E experts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.moe.report import expert_report
from train import lm_figures
from train.api import LoadedRun
from train.data import Part
from train.figures import png
from train.lm_task import layers_with_experts, model_variables
from train.optim import learning_rate
from train.packing import PackedText, pack
from train.step import Scorer
from train.text import Corpus, load_corpus
from train.workdir import dump, write_text

USAGE_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """Scores of one part, or of all of another text. `usage`: see `expert_use`; None if dense."""

    part: str
    source: str
    num_rows: int
    num_bytes: int
    scores: dict[str, float]
    usage: dict[str, Any] | None

    def to_json(self) -> str:
        """All of it as one JSON object."""
        return dump(vars(self))


def evaluate(run: LoadedRun, part: Part = "test", text: str = "") -> TextEvaluation:
    """Score the run's best parameters on a part, or on all of another text (file or pattern)."""
    data = other_text(run, text) if text else run.dataset
    part = "test" if text else part
    starts = data.starts[part]
    task = replace(run.task, arrays=jax.device_put(data.tokens), indices={part: starts})
    scorer = Scorer(task, batch_size=run.config.loop.eval_batch_size)
    return TextEvaluation(
        part="all" if text else part,
        source=data.source,
        num_rows=len(starts),
        num_bytes=data.corpus.num_bytes(part),
        scores=scorer.scores(run.params, part),
        usage=expert_use(run, data, starts) if layers_with_experts(run.config.model) else None,
    )


def other_text(run: LoadedRun, text: str) -> PackedText:
    """Another text as data for this run: all of its documents are "test"."""
    config = replace(run.config.data, text=text)
    corpus = load_corpus(config)
    documents = tuple(one for part in corpus.parts.values() for one in part)
    whole = Corpus(source=corpus.source, parts={"train": (), "val": (), "test": documents})
    return pack(whole, config)


def expert_use(run: LoadedRun, data: PackedText, starts: np.ndarray) -> dict[str, Any]:
    """Who works in each layer, over at most USAGE_ROWS rows spread evenly.

    `share` [L, E]: of the layer's choices; 1 / E is an even share. `imbalance` [L]: largest over
    mean, minus 1. `load_entropy` [L]: in units of log E, 1 is even.
    """
    spread = np.linspace(0, len(starts) - 1, min(USAGE_ROWS, len(starts))).astype(int)
    routed_LE = np.sum(list(_counts(run, data, starts[np.unique(spread)])), axis=0)
    share_LE = routed_LE / routed_LE.sum(axis=1, keepdims=True)
    logs = np.log(np.where(share_LE > 0, share_LE, 1.0))
    return {
        "layers": layers_with_experts(run.config.model),
        "rows": len(np.unique(spread)),
        "share": share_LE,
        "imbalance": share_LE.max(axis=1) * share_LE.shape[1] - 1,
        "load_entropy": -(share_LE * logs).sum(axis=1) / np.log(max(share_LE.shape[1], 2)),
    }


def _counts(run: LoadedRun, data: PackedText, starts: np.ndarray) -> Iterator[np.ndarray]:
    """Choices [L, E] of each batch of rows."""
    model, size = run.model, min(run.config.loop.eval_batch_size, len(starts))

    @jax.jit
    def count(params: Any, tokens: jax.Array, starts_B: jax.Array, real_B: jax.Array) -> jax.Array:
        rows = run.task.cut(tokens, starts_B)
        mask_BS = (rows.segments > 0) & real_B[:, None]
        apply = partial(model.apply, model_variables(params), mutable=["moe"])
        _, sown = apply(rows.ids, mask_BS, segments_BS=rows.segments)
        return expert_report(sown["moe"]).routed

    tokens = jax.device_put(data.tokens)
    for first in range(0, len(starts), size):
        some = starts[first : first + size]
        padded = np.resize(some, size).astype(np.int32)
        real = jnp.arange(size) < len(some)
        yield np.asarray(count(run.params, tokens, padded, real), np.float64)


def save_evaluation(run: LoadedRun, evaluation: TextEvaluation) -> Path:
    """Write eval.json into the run's workdir; returns its path."""
    path = run.workdir.path / "eval.json"
    write_text(path, evaluation.to_json() + "\n")
    return path


def save_plots(run: LoadedRun, evaluation: TextEvaluation) -> list[Path]:
    """Write plots/NAME.png into the run's workdir; returns the paths."""
    history = [line for line in run.workdir.read_metrics() if "epoch" in line]
    figures = {}
    if history:
        loop = run.config.loop
        steps = history[0]["step"] // history[0]["epoch"]
        rate = learning_rate(run.config.optim, steps_per_epoch=steps, epochs=loop.epochs)
        rates = [np.asarray(rate(line["step"])).item() for line in history]
        tokens = loop.batch_size * run.config.data.seq_len
        figures["learning_curves"] = lm_figures.learning_curves(history, rates, tokens)
    if evaluation.usage:
        figures["expert_usage"] = lm_figures.expert_usage(evaluation.usage)
        if history:
            figures["expert_load"] = lm_figures.expert_load(history)
    folder = run.workdir.path / "plots"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        path.write_bytes(png(figure))
    return paths
