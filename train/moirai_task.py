"""The task of training MOIRAI-MoE: the density of the next patch, and what is scored.

Token i is scored on the next patch of its series (sample and variate), where that patch may not
enter the scaler (`prediction_mask`); so no number that is predicted has been seen, nor has moved
the location and scale by which it is predicted. Losses are in nats per value of the standardised
series, so that series in other units count alike.

The task's parameters are a dict as that of train/lm_task.py: "params", "router_state" where the
router has centroids, and "training" with the step and the experts' load [L, E].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from moejax.distributions import Distribution
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, Tokens, empty_tokens
from moejax.models.moirai_moe_losses import packed_nll
from moejax.moe.balancing import COLLECTION
from moejax.moe.usage import aux_loss
from train.lm_task import TRAINING, load_report, model_variables
from train.moirai_data.rows import PackedSeries, cut
from train.task import Task

LAYERS = "layers_{}"


@dataclass(frozen=True, kw_only=True)
class MoiraiTraining:
    """Where training begins and what it minimises.

    `start`: a published checkpoint's folder or a run's workdir whose weights to begin with; its
    model takes the place of the recipe's. `centroids`: a run's workdir; the centroids are found by
    k-means on its activations, and its weights are the beginning too where they fit (see
    train/moirai_centroids.py). `average`: over the cells of each series of a row and then over
    the series ("groups", as the published loss), or over all cells. `load_decay`, `dead_share`:
    see LMTraining.
    """

    start: str = ""
    centroids: str = ""
    average: Literal["groups", "cells"] = "groups"
    load_decay: float = 0.99
    dead_share: float = 0.1

    def __post_init__(self) -> None:
        if self.average not in ("groups", "cells"):
            raise ValueError(f"training.average is {self.average!r}; allowed: 'groups', 'cells'")
        for name in ("load_decay", "dead_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if self.start and self.centroids:
            raise ValueError("training.start and training.centroids are both set; give one of them")


def bare_task(config: MoiraiMoEConfig, training: MoiraiTraining) -> Task:
    """The task without its data: enough to restore a run's parameters."""
    model = MoiraiMoE(config)
    return Task(
        arrays={},
        indices={},
        cut=partial(cut, width=config.patch_length),
        init=partial(_init, model),
        loss=partial(_loss, model, training),
        errors=partial(_errors, model),
        scores=scores,
        watched="nll",
        update=partial(_update, training),
        weight=partial(_weight, training),
        report=partial(load_report, dead_share=training.dead_share),
    )


def make_task(
    config: MoiraiMoEConfig,
    training: MoiraiTraining,
    data: PackedSeries,
    *,
    start: Callable[[], Any] | None = None,
    closing: Callable[[Any], dict[str, Any]] | None = None,
) -> Task:
    """A model on packed series. `start()`: variables to begin with; `closing`: see Task."""
    task = bare_task(config, training)
    return replace(
        task,
        arrays=data.arrays(),
        indices=data.indices,
        start=None if start is None else lambda: _state(config, start()),
        closing=closing or task.closing,
        fingerprint=data.fingerprint(),
        notes=data.notes,
    )


def next_patch_nll(found: Distribution, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
    """(nats [B, T, P] of the standardised next patch, 0 where not scored; cells that are scored).

    The token behind token i in the row must be the next of its series, or belong to another one.
    """

    def following(array: jax.Array) -> jax.Array:
        return jnp.roll(jnp.asarray(array), -1, axis=1)

    ids = tokens.sample_id, tokens.variate_id, tokens.patch_size
    same_BT = jnp.asarray(tokens.sample_id) > 0
    for one in ids:
        same_BT &= following(one) == jnp.asarray(one)
    same_BT &= following(tokens.time_id) == jnp.asarray(tokens.time_id) + 1
    scored_BT = (same_BT & following(tokens.prediction_mask)).at[:, -1].set(False)
    cells_BTP = scored_BT[..., None] & following(tokens.observed_mask)
    y_BTP = jnp.where(cells_BTP, following(tokens.target), found.loc)
    log_BTP = found.log_prob(y_BTP) + jnp.log(found.scale)
    return jnp.where(cells_BTP, -log_BTP, 0.0), cells_BTP


def mean_nll(nll_BTP: jax.Array, cells_BTP: jax.Array, tokens: Tokens, average: str) -> jax.Array:
    """Over the cells of each series of a row and then over the series, or over all "cells"."""
    if average == "cells":
        count = jnp.sum(cells_BTP, dtype=jnp.float32)
        return jnp.sum(nll_BTP) / jnp.maximum(count, 1)
    scored_BT = jnp.any(cells_BTP, axis=-1)
    ids = jnp.asarray(tokens.sample_id), jnp.asarray(tokens.variate_id)
    return packed_nll(-nll_BTP, cells_BTP, scored_BT, *ids)


def expert_counts(sown: Any) -> jax.Array:
    """[L, E] float32: choices of each expert, from the sown collection "moe"."""
    names = [LAYERS.format(i) for i in range(len(sown))]
    return jnp.stack([sown[name]["moe"]["usage"][0].wanted for name in names]).astype(jnp.float32)


def scores(means: dict[str, np.ndarray]) -> dict[str, float]:
    """Nats per value of the standardised series, over all cells."""
    return {"nll": float(means["nats"] / means["cells"])}


def _init(model: MoiraiMoE, key: jax.Array) -> dict[str, Any]:
    return _state(model.config, model.init(key, empty_tokens(model.config, tokens=2)))


def _state(config: MoiraiMoEConfig, variables: Any) -> dict[str, Any]:
    """A task's parameters, of the model's variables."""
    kept = {name: variables[name] for name in ("params", COLLECTION) if name in variables}
    shape = config.num_layers, config.num_experts
    load = jnp.full(shape, 1 / config.num_experts)
    return {**kept, TRAINING: {"step": jnp.zeros((), jnp.int32), "load": load}}


def _loss(
    model: MoiraiMoE, training: MoiraiTraining, params: Any, tokens: Tokens, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    dropout_key, router_key = jax.random.split(key)
    found, sown = model.apply(
        model_variables(params),
        tokens,
        train=True,
        mutable=["moe"],
        rngs={"dropout": dropout_key, "router": router_key},
    )
    nll_BTP, cells_BTP = next_patch_nll(found, tokens)
    nll = mean_nll(nll_BTP, cells_BTP, tokens, training.average)
    aux = aux_loss(sown["moe"])
    return nll + aux, {"nll": nll, "aux": aux, "choices": expert_counts(sown["moe"])}


def _weight(training: MoiraiTraining, tokens: Tokens) -> jax.Array:
    """What a batch counts for: by cells that may be scored, or alike."""
    if training.average == "groups":
        return jnp.ones(())
    scored = jnp.asarray(tokens.prediction_mask)[..., None] & tokens.observed_mask
    return jnp.sum(scored, dtype=jnp.float32)


def _update(
    training: MoiraiTraining,
    params: Any,
    optimiser_state: Any,
    metrics: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[Any, Any]:
    """Count the step and average the experts' load."""
    state = dict(params[TRAINING])
    state["step"] = state["step"] + 1
    counts_LE = metrics["choices"]
    share_LE = counts_LE / jnp.maximum(jnp.sum(counts_LE, axis=-1, keepdims=True), 1e-9)
    decay = training.load_decay
    state["load"] = decay * state["load"] + (1 - decay) * share_LE
    return {**params, TRAINING: state}, optimiser_state


def _errors(model: MoiraiMoE, params: Any, tokens: Tokens) -> dict[str, jax.Array]:
    found: Any = model.apply(model_variables(params), tokens)
    nll_BTP, cells_BTP = next_patch_nll(found, tokens)
    return {
        "nats": jnp.sum(nll_BTP, axis=(1, 2)),
        "cells": jnp.sum(cells_BTP, axis=(1, 2), dtype=jnp.float32),
    }
