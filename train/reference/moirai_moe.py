"""Recorded runs of MOIRAI-MoE: checkpoint folders model_*, and cases of inputs and outputs.

A case is two files, NAME.inputs.safetensors and NAME.outputs.safetensors; NAME says its model:
`a_packed` belongs to `model_a`, or to the only model of the folder. What is recorded is found out
from the tensors.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from moejax.distributions import Distribution
from moejax.interop.moirai import load_moirai_moe
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, Tokens
from moejax.models.moirai_moe_losses import packed_nll, sample_nll
from train.reference.moirai_forecast import check_forecast
from train.reference.rows import Case, Computed, Findings, Row, check_case

ACTIVATION = {"atol": 2e-5, "rtol": 1e-5}
LOG_DENSITY = {"atol": 5e-3}
MEAN = {"atol": 5e-5, "rtol": 1e-5}
VARIANCE = {"atol": 1e-3, "rtol": 1e-4}
EXACT = {"atol": 0.0}

_INPUTS, _OUTPUTS = ".inputs.safetensors", ".outputs.safetensors"
_TOKENS = ("target", "observed_mask", "sample_id", "time_id", "variate_id")
_FLAGS = ("observed_mask", "prediction_mask")
TOKENS = (*_TOKENS, "prediction_mask", "patch_size")
_VALUE = "loglik_target"
_WHOLE = ("loc", "scale", "in_proj_out", "feat_proj_out", "res_proj_out", "encoder_in")
_PARTS = ("attn_out", "ffn_in", "ffn_out", "out")

Arrays = Mapping[str, np.ndarray]


def recognises(folder: Path) -> bool:
    """Whether the folder has cases of this layout and models for them."""
    return bool(list(folder.glob(f"*{_INPUTS}"))) and bool(_models(folder))


def check(folder: Path, only: str | None = None) -> Iterator[Row]:
    """The rows of every case of the folder, by name."""
    names = {
        path.name.removesuffix(ending)
        for ending in (_INPUTS, _OUTPUTS)
        for path in folder.glob(f"*{ending}")
    }
    for name in sorted(names):
        if only is None or fnmatch(name, only):
            yield from _check_files(folder, name)


def _check_files(folder: Path, name: str) -> Iterator[Row]:
    try:
        inputs, outputs = (load_file(folder / f"{name}{end}") for end in (_INPUTS, _OUTPUTS))
    except (SafetensorError, OSError) as error:
        yield Row(name, "(file)", ok=False, note=f"cannot be read: {error}")
        return
    case = Case(name, folder, outputs, {})
    with jax.default_matmul_precision("highest"):
        yield from check_case(case, partial(_check, inputs=inputs))


def _check(case: Case, inputs: Arrays) -> Findings:
    config, variables = load_moirai_moe(_model_of(case))
    if set(TOKENS) <= inputs.keys():
        return _check_module(inputs, config, variables)
    if "past_target" in inputs:
        return check_forecast(case, inputs, config, variables)
    return Findings(note="neither the tokens of a forward pass nor a past to forecast from")


def _models(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("model_*/config.json"))


def _model_of(case: Case) -> Path:
    """The model of the longest name that the case's name begins with, or the only one."""
    models = _models(case.folder)
    fitting = [m for m in models if case.name.startswith(f"{m.name.removeprefix('model_')}_")]
    if not fitting and len(models) != 1:
        raise ValueError(
            f"no model fits: there are {[m.name for m in models]}, and a case of model_x is called"
            " x_..."
        )
    return max(fitting or models, key=lambda model: len(model.name))


def _check_module(inputs: Arrays, config: MoiraiMoEConfig, variables: Any) -> Findings:
    tokens = make_tokens(inputs)
    found, sown = run(config, variables, tokens)
    rows = {name: Computed(sown[name][0], **ACTIVATION) for name in (*_WHOLE, "encoder_out")}
    rows["attn_mask"] = Computed(np.asarray(sown["mask"][0])[:, 0], **EXACT)
    rows |= {f"raw.{arg}": Computed(raw, **ACTIVATION) for arg, raw in sown["raw"][0].items()}
    for index in range(config.num_layers):
        for part, computed in _layer(sown[f"layers_{index}"], tokens, config).items():
            rows[f"layer{index}.{part}"] = computed
    rows |= {f"param.{arg}": Computed(value, **ACTIVATION) for arg, value in found.params.items()}
    rows["mean"] = Computed(found.mean(), **MEAN)
    rows["variance"] = Computed(found.variance(), **VARIANCE)
    if _VALUE in inputs:
        rows |= _densities(found, inputs[_VALUE], tokens)
    return Findings(computed=rows)


def make_tokens(tensors: Arrays) -> Tokens:
    """The tokens of recorded tensors, flags as bool."""
    arrays = {name: jnp.asarray(tensors[name]) for name in TOKENS}
    return Tokens(**arrays | {name: arrays[name].astype(bool) for name in _FLAGS})


@partial(jax.jit, static_argnums=0)
def run(
    config: MoiraiMoEConfig, variables: Any, tokens: Tokens
) -> tuple[Distribution, dict[str, Any]]:
    """The distribution, and everything that is sown on the way."""
    found, sown = MoiraiMoE(config).apply(variables, tokens, mutable=["intermediates"])
    return found, dict(sown["intermediates"])


def _layer(sown: Any, tokens: Tokens, config: MoiraiMoEConfig) -> dict[str, Computed]:
    """What is recorded of a layer; distances in descending order."""
    row = jnp.shape(tokens.sample_id)
    routing, k = sown["moe"]["routing"][0], config.top_k
    distance = np.abs(np.asarray(routing.logits)).reshape(*row, -1)
    ranked = -np.sort(-distance, axis=-1)
    return {
        **{part: Computed(sown[part][0], **ACTIVATION) for part in _PARTS},
        "router_dist": Computed(distance, **ACTIVATION),
        "router_experts": Computed(routing.index.reshape(*row, -1), **EXACT),
        "router_weights": Computed(routing.weight.reshape(*row, -1), **ACTIVATION),
        "router_margin": Computed(ranked[..., k - 1] - ranked[..., k], **ACTIVATION),
    }


def _densities(found: Distribution, value: np.ndarray, tokens: Tokens) -> dict[str, Computed]:
    log_prob = found.log_prob(jnp.asarray(value))
    masks = tokens.observed_mask, tokens.prediction_mask, tokens.sample_id, tokens.variate_id
    return {
        "loglik": Computed(log_prob, **LOG_DENSITY),
        "loss.packed_nll": Computed(packed_nll(log_prob, *masks), **ACTIVATION),
        "loss.sample_nll": Computed(sample_nll(log_prob, *masks), **ACTIVATION),
    }
