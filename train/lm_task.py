"""The task of training a language model: its loss, its state beside the parameters, its scores.

The task's parameters are a dict: "params" (trained), "router_state" where the router has a
correction bias, and "training": the number of optimiser steps made, and for a model with experts
their load [L, M], the share of the choices that each of the M outputs of the routers got in each
of the L layers with experts, as an average that forgets.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.models.moe_lm import IGNORED, CausalLM, LMConfig, token_losses
from moejax.models.sharding import DATA, lm_mesh, lm_shardings
from moejax.moe.balancing import COLLECTION, update_router_state
from moejax.moe.reset import reset_dead_experts
from moejax.moe.usage import aux_loss
from train.data import PARTS
from train.packing import PackedText, Rows, cut_rows
from train.task import Task

TRAINING = "training"


@dataclass(frozen=True, kw_only=True)
class LMTraining:
    """What training adds to a model's own auxiliary losses.

    `z_loss`: weight of the mean square of the logits' logsumexp. `load_decay`: what a step keeps of
    the average load. `dead_share`: an expert with less than this share of the mean load is reported
    as dead, and gets a new column in its router where model.moe.schedule.reset_steps asks for it.
    """

    z_loss: float = 1e-4
    load_decay: float = 0.99
    dead_share: float = 0.1

    def __post_init__(self) -> None:
        if not self.z_loss >= 0:
            raise ValueError(f"training.z_loss is {self.z_loss}; it must be >= 0")
        for name in ("load_decay", "dead_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; it must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices that share the rows of a batch, the experts, and the inside of layers."""

    data: int = 1
    expert: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size < 1:
                raise ValueError(f"mesh.{name} is {size}; it must be >= 1")

    def make(self) -> Mesh | None:
        """The mesh, None for one device; ValueError for too few devices."""
        return lm_mesh(**vars(self)) if any(size > 1 for size in vars(self).values()) else None


def make_task(
    config: LMConfig, training: LMTraining, text: PackedText, mesh: Mesh | None = None
) -> Task:
    """A language model on packed text, on one device or a mesh; bits per byte are watched."""
    model: Any = CausalLM(config)

    def cut(tokens: jax.Array, starts_B: jax.Array) -> Rows:
        rows = cut_rows(tokens, starts_B, text.seq_len)
        return rows if mesh is None else jax.device_put(rows, NamedSharding(mesh, P(DATA)))

    return Task(
        arrays=text.tokens,
        indices={part: text.starts[part] for part in PARTS},
        cut=cut,
        init=partial(_init, model, text.seq_len),
        loss=partial(_loss, model, training),
        errors=partial(_errors, model),
        scores=scores,
        watched="bits_per_byte",
        update=partial(_update, config, training),
        weight=lambda rows: jnp.sum(rows.targets != IGNORED).astype(jnp.float32),
        report=partial(load_report, dead_share=training.dead_share),
        shardings=None if mesh is None else partial(lm_shardings, mesh=mesh),
        fingerprint=text.fingerprint(),
        notes=text.notes,
    )


def model_variables(params: Any) -> dict[str, Any]:
    """What `CausalLM.apply` takes, of a task's parameters."""
    return {name: tree for name, tree in params.items() if name != TRAINING}


def layers_with_experts(config: LMConfig) -> list[str]:
    """Names of the layers whose load is counted, in order."""
    return [f"layers_{i}" for i in range(config.num_layers) if config.is_sparse(i)]


def expert_counts(sown: Any, config: LMConfig) -> jax.Array:
    """[L, M] float32: choices of each output of the routers, from the sown collection "moe"."""
    layers = [sown[name]["moe"]["usage"][0].wanted for name in layers_with_experts(config)]
    return jnp.stack(layers).astype(jnp.float32)


def scores(means: dict[str, np.ndarray]) -> dict[str, float]:
    """From means over rows: bits a byte, ends of documents paid for too; nats and hits a token."""
    return {
        "bits_per_byte": float(means["nats"] / means["bytes"] / np.log(2)),
        "loss": float(means["nats"] / means["tokens"]),
        "accuracy": float(means["hits"] / means["tokens"]),
    }


def load_report(params: Any, dead_share: float) -> dict[str, Any]:
    """The experts' average load [L, M], and the dead ones as [layer with experts, expert]."""
    load = params[TRAINING].get("load")
    if load is None:
        return {}
    load_LM = np.asarray(load, np.float64)
    dead = np.argwhere(load_LM < dead_share / load_LM.shape[1])
    return {"expert_load": load_LM.round(4).tolist(), "dead_experts": dead.tolist()}


def _init(model: CausalLM, seq_len: int, key: jax.Array) -> dict[str, Any]:
    variables = model.init(key, jnp.zeros((1, seq_len), jnp.int32))
    state: dict[str, Any] = {"step": jnp.zeros((), jnp.int32)}
    config = model.config
    layers = layers_with_experts(config)
    if config.moe is not None and layers:
        outputs = config.moe.routing.num_outputs
        state["load"] = jnp.full((len(layers), outputs), 1 / outputs)
    kept = {name: variables[name] for name in ("params", COLLECTION) if name in variables}
    return {**kept, TRAINING: state}


def _loss(
    model: CausalLM, training: LMTraining, params: Any, rows: Rows, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    output, sown = model.apply(
        model_variables(params),
        rows.ids,
        rows.segments > 0,
        segments_BS=rows.segments,
        step=params[TRAINING]["step"],
        train=True,
        mutable=["moe"],
        rngs={"router": key},
    )
    nats_BS, squares_BS = token_losses(output.logits, rows.targets)
    count = jnp.maximum(jnp.sum(rows.targets != IGNORED), 1)
    cross, z = jnp.sum(nats_BS) / count, jnp.sum(squares_BS) / count
    metrics = {"cross_entropy": cross, "z": z}
    loss = cross + training.z_loss * z
    if "load" in params[TRAINING]:
        metrics["aux"] = aux_loss(sown["moe"])
        # per token, so that a mean over batches by their tokens is that of all tokens
        metrics["choices"] = expert_counts(sown["moe"], model.config) / count
        loss = loss + metrics["aux"]
    return loss, metrics


def _update(
    config: LMConfig,
    training: LMTraining,
    params: Any,
    optimiser_state: Any,
    metrics: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[Any, Any]:
    """Count the step, average the load, move the routers' biases, reset dead experts."""
    state = dict(params[TRAINING])
    new = {**params, TRAINING: state}
    state["step"] = state["step"] + 1
    moe, names = config.moe, layers_with_experts(config)
    if moe is None or not names:
        return new, optimiser_state
    counts_LM = metrics["choices"]
    share_LM = counts_LM / jnp.maximum(jnp.sum(counts_LM, axis=-1, keepdims=True), 1e-9)
    decay = training.load_decay
    state["load"] = decay * state["load"] + (1 - decay) * share_LM
    if COLLECTION in params and moe.routing.has_bias:
        counts = {name: {"moe": {"bias": counts_LM[i]}} for i, name in enumerate(names)}
        new[COLLECTION] = update_router_state(params[COLLECTION], counts, rate=moe.bias_rate)
    if not moe.schedule.reset_steps:
        return new, optimiser_state
    load_LE = state["load"][:, : moe.routing.num_experts]
    load_LE = load_LE / jnp.maximum(jnp.mean(load_LE, axis=-1, keepdims=True), 1e-9)
    due = state["step"] % moe.schedule.reset_steps == 0
    new["params"], optimiser_state, _ = reset_dead_experts(
        params["params"],
        optimiser_state,
        {name: {"moe": {"load": load_LE[i]}} for i, name in enumerate(names)},
        key,
        threshold=jnp.where(due, training.dead_share, 0.0),
    )
    return new, optimiser_state


def _errors(model: Any, params: Any, rows: Rows) -> dict[str, jax.Array]:
    output = model.apply(
        model_variables(params),
        rows.ids,
        rows.segments > 0,
        segments_BS=rows.segments,
        step=params[TRAINING]["step"],
    )
    nats_BS, _ = token_losses(output.logits, rows.targets)
    hits_BS = jnp.argmax(output.logits, axis=-1) == rows.targets
    tokens_BS = rows.targets != IGNORED
    bytes_BS = tokens_BS & (rows.targets < 256)
    counted = {"nats": nats_BS, "hits": hits_BS, "tokens": tokens_BS, "bytes": bytes_BS}
    return {name: jnp.sum(one, axis=1, dtype=jnp.float32) for name, one in counted.items()}
