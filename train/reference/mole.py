"""Recorded tensors of MoLE and its base models: forwards, gradients, Adam steps, data, scores.

What a file holds is found out from its tensor names and metadata; its name means nothing.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moejax.interop.mole import from_published, published_config, to_published
from moejax.layers.decompose import decompose
from moejax.layers.softmax import exclude, softmax
from moejax.models.mole import MoLE, MoLEConfig
from train.reference import mole_data
from train.reference.rows import Case, Computed, Findings, Row, cases, check_case, tensor_names

FORWARD = 2e-5
FORWARD_F64 = 1e-9
GRADIENT = {"atol": 1e-6, "rtol": 1e-4}
ADAM = 1e-5
ADAM_LOSS = 2e-5
ADAM_LEARNING_RATE = 0.005

Params = Any


def recognises(folder: Path) -> bool:
    """Whether a file of the folder holds something of MoLE."""
    return any(_check_of(names) for names in tensor_names(folder))


def check(folder: Path, only: str | None = None) -> Iterator[Row]:
    """The rows of every case of the folder."""
    for case in cases(folder, only):
        if isinstance(case, Row):
            yield case
            continue
        with jax.default_matmul_precision("highest"):
            yield from check_case(case, _check_of(set(case.tensors)) or _check_nothing)


def _check_of(names: set[str]) -> Callable[[Case], Findings] | None:
    """The check that fits the content of a file, or None."""
    if "scaler.mean" in names:
        return mole_data.check_data
    if {"in.logits", "in.keep_mask"} <= names:
        return _check_head_dropout
    if any(name.startswith(("param.Linear", "param.projection")) for name in names):
        return mole_data.check_trained if "idx" in names else _check_model
    return None


def _check_nothing(case: Case) -> Findings:
    return Findings(note="not a file of this system")


def _check_head_dropout(case: Case) -> Findings:
    logits, keep = (jnp.asarray(case.tensor(f"in.{name}")) for name in ("logits", "keep_mask"))
    masked = exclude(logits, keep)
    return Findings(
        computed={
            "out.masked": Computed(masked, FORWARD),
            "out.gate": Computed(softmax(masked, axis=-1), FORWARD),
        },
        inputs={"in.logits", "in.keep_mask"},
    )


def _check_model(case: Case) -> Findings:
    """Forward in float32 and float64, gradients and Adam steps of one recorded model."""
    published = case.under("param.")
    config = _config(case, published)
    params = from_published(published, config)
    found = Findings(inputs={"in.x", "in.x_mark", "in.target"})
    # A parameter is checked by conversion to our layout and back, where names survive the round.
    found.inputs |= {f"param.{name}" for name in published}
    for name, array in to_published(params, config).items():
        found.computed[f"param.{name}"] = Computed(array, 0.0)

    inputs = case.tensor("in.x"), _first_mark(case, config)
    outputs = _outputs(config, params, *inputs)
    found.computed |= {name: Computed(value, FORWARD) for name, value in outputs.items()}
    if any(name.endswith("_f64") for name in case.tensors):
        with jax.enable_x64(True):
            outputs = _outputs(config, *_to_float64((params, *inputs)))
            outputs = {f"{name}_f64": np.asarray(value) for name, value in outputs.items()}
        found.computed |= {name: Computed(value, FORWARD_F64) for name, value in outputs.items()}
    if "in.target" in case.tensors:
        found.computed |= _training(case, config, params, inputs)
    return found


def _config(case: Case, published: dict[str, np.ndarray]) -> MoLEConfig:
    recorded = next(filter(None, case.matching(r"out\.y(_f64)?")), None)
    pred_len = case.number("pred_len") if recorded is None else case.tensors[recorded[0]].shape[1]
    return published_config(
        published,
        pred_len=int(pred_len),
        num_channels=case.tensor("in.x").shape[2],
        kernel_size=int(case.metadata.get("kernel_size", 25)),
    )


def _first_mark(case: Case, config: MoLEConfig) -> np.ndarray | None:
    return case.tensor("in.x_mark")[:, 0] if config.router == "time" else None


def _to_float64(tree: Any) -> Any:
    return jax.tree.map(lambda array: np.asarray(array, np.float64), tree)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(config: MoLEConfig, params: Params, x_BSC, mark_BF) -> dict[str, jax.Array]:
    """Everything that is recorded of one forward pass, under its recorded name."""
    model = MoLE(config).bind({"params": params})
    forecast = model(x_BSC, mark_BF)
    outputs = {"out.y": forecast.y, "out.gate": forecast.gate}
    window_BSC = x_BSC
    if config.normalises:
        stats = model.revin.stats(x_BSC)
        outputs["mid.rev_mean"], outputs["mid.rev_std"] = stats
        window_BSC = model.revin.normalise(x_BSC, stats)
    if config.base == "dlinear":
        parts = decompose(x_BSC, kernel_size=config.kernel_size)
        outputs["mid.seasonal"], outputs["mid.trend"] = parts
    return outputs | {"mid.heads": model.heads(window_BSC)}


def _training(case: Case, config: MoLEConfig, params: Params, inputs) -> dict[str, Computed]:
    """Loss, gradients, and what Adam makes of them on the same batch."""
    target = case.tensor("in.target")
    if target.shape != (len(inputs[0]), config.pred_len, config.num_channels):
        raise ValueError(f"in.target has shape {target.shape}, which is not that of a forecast")
    optimiser = optax.adam(ADAM_LEARNING_RATE)

    @jax.jit
    def loss_and_gradients(params):
        def loss(params):
            forecast = MoLE(config).bind({"params": params})(*inputs)
            return jnp.mean(jnp.square(forecast.y - target))

        return jax.value_and_grad(loss)(params)

    @jax.jit
    def step(params, state):
        loss, gradients = loss_and_gradients(params)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    loss, gradients = loss_and_gradients(params)
    computed = {"out.loss": Computed(np.reshape(loss, (1,)), FORWARD)}
    for name, array in to_published(gradients, config).items():
        computed[f"grad.{name}"] = Computed(array, **GRADIENT)
    for match in case.matching(r"out\.adam(\d+)_losses"):
        state, stepped, losses = optimiser.init(params), params, []
        for _ in range(int(match[1])):
            stepped, state, loss = step(stepped, state)
            losses.append(loss)
        computed[match[0]] = Computed(np.stack(losses), ADAM_LOSS)
        for name, array in to_published(stepped, config).items():
            computed[f"adam{match[1]}.{name}"] = Computed(array, ADAM)
    return computed
