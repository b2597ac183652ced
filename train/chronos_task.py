"""The task of training Chronos: the cross-entropy of the tokens ahead, experts' balance beside it.

The task's parameters are a dict as that of train/lm_task.py: "params", and "training" with the step
and, of a mixture, the experts' load [1, E].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins
from moejax.interop.chronos import initial
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_losses import IGNORED, shift_right, token_loss
from train.chronos_data.config import WindowConfig
from train.chronos_data.windows import WindowSet, cut
from train.chronos_init import structured
from train.lm_task import TRAINING, load_report
from train.task import Task

Batch = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class ChronosTraining:
    """Where training begins, and what is said of experts.

    `start`: a published checkpoint's folder, a hub id or a run's workdir, whose model takes the
    place of the recipe's. `period`: where there is no `start`, begin ready to look up what came so
    many steps ago, as `train.chronos_init` says; 0: T5's initialisation. `load_decay`,
    `dead_share`: see LMTraining.
    """

    start: str = ""
    period: int = 0
    load_decay: float = 0.99
    dead_share: float = 0.1

    def __post_init__(self) -> None:
        if self.period < 0:
            raise ValueError(f"training.period is {self.period}; it must be at least 0")
        for name in ("load_decay", "dead_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it must be in [0, 1)")


def bare_task(config: ChronosModelConfig, training: ChronosTraining) -> Task:
    """The task without its data: enough to restore a run's parameters."""
    return Task(
        arrays={},
        indices={},
        cut=lambda arrays, rows: {},
        init=lambda key: _state(config, _initial(config, training, key)),
        loss=partial(_loss, config),
        errors=partial(_errors, config),
        scores=lambda means: {"loss": float(means["nats"] / means["tokens"])},
        watched="loss",
        update=partial(_update, training),
        weight=lambda batch: jnp.sum(batch["labels"] != IGNORED).astype(jnp.float32),
        report=partial(load_report, dead_share=training.dead_share),
    )


def make_task(
    config: ChronosModelConfig,
    training: ChronosTraining,
    data: WindowSet,
    windows: WindowConfig,
    *,
    start: Callable[[], Any] | None = None,
    closing: Callable[[Any], dict[str, Any]] | None = None,
) -> Task:
    """A model on windows. `start()`: variables to begin with; `closing`: see Task."""
    task = bare_task(config, training)
    return replace(
        task,
        arrays=data.arrays(),
        indices=data.indices,
        cut=partial(cut, config=windows, tokenizer=MeanScaleUniformBins(config.chronos)),
        start=None if start is None else lambda: _state(config, start()),
        closing=closing or task.closing,
        fingerprint=data.fingerprint(),
        notes=data.notes,
    )


def _initial(config: ChronosModelConfig, training: ChronosTraining, key: jax.Array) -> Any:
    if not training.period:
        return initial(config, key)
    plain, structure = jax.random.split(key)
    return structured(config, initial(config, plain), training.period, structure)


def _state(config: ChronosModelConfig, variables: Any) -> dict[str, Any]:
    state: dict[str, Any] = {"step": jnp.zeros((), jnp.int32)}
    if config.chronos.use_moe:
        count = config.chronos.num_experts
        state["load"] = jnp.full((1, count), 1 / count)
    return {"params": variables["params"], TRAINING: state}


def _predict(
    config: ChronosModelConfig, params: Any, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, Any]:
    """(logits of the labels [B, P + 1, V], a mixture's whole output or None)."""
    labels, pad = batch["labels"], config.chronos.pad_token_id
    options: dict[str, Any] = {} if key is None else {"train": True, "rngs": {"dropout": key}}
    out: Any = config.module().apply(
        {"params": params["params"]},
        batch["ids"],
        batch["mask"],
        shift_right(labels, config.t5.decoder_start_token_id, pad),
        **options,
    )
    return (out.logits, out) if config.chronos.use_moe else (out, None)


def _loss(
    config: ChronosModelConfig, params: Any, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits_BUV, out = _predict(config, params, batch, key)
    loss = token_loss(logits_BUV, batch["labels"])
    metrics = {"cross_entropy": loss}
    if out is not None:
        metrics["balance"] = out.balance
        metrics["choices"] = out.routing.counts(out.routing.keep)[None].astype(jnp.float32)
        loss = loss + config.chronos.load_balancing_weight * out.balance
    return loss, metrics


def _update(
    training: ChronosTraining,
    params: Any,
    optimiser_state: Any,
    metrics: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[Any, Any]:
    """Count the step and average the experts' load."""
    state = dict(params[TRAINING])
    state["step"] = state["step"] + 1
    if "load" in state:
        share_LE = metrics["choices"] / jnp.maximum(jnp.sum(metrics["choices"]), 1e-9)
        decay = training.load_decay
        state["load"] = decay * state["load"] + (1 - decay) * share_LE
    return {**params, TRAINING: state}, optimiser_state


def _errors(config: ChronosModelConfig, params: Any, batch: Batch) -> dict[str, jax.Array]:
    logits_BUV, _ = _predict(config, params, batch, None)
    labels_BU = batch["labels"]
    nats_B = jax.vmap(token_loss)(logits_BUV[:, None], labels_BU[:, None])
    tokens_B = jnp.sum(labels_BU != IGNORED, axis=1).astype(jnp.float32)
    return {"nats": nats_B * tokens_B, "tokens": tokens_B}
