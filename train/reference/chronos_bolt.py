"""Recorded runs of Chronos-Bolt: tokens, states, quantiles, loss, forecasts of any length."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.forecasting.chronos.bolt import ChronosBoltPipeline
from moejax.models.chronos_bolt import BoltConfig, ChronosBolt, normalise, quantile_loss
from train.reference.lm_runs import COMPILER
from train.reference.rows import Case, Computed, Findings

RELATIVE = 1e-4
_PICKED = {"pq_in": (0.1, 0.5, 0.9), "pq_interp": (0.05, 0.25, 0.85, 0.97)}


def check_bolt(case: Case) -> Findings:
    """Everything from config.json, the weights and the contexts."""
    pipeline = ChronosBoltPipeline.from_pretrained(case.folder)
    config, context = pipeline.config, case.tensor("context")
    quantiles, sown = _run(config, pipeline.variables, context)
    x_BSD, mask_BS, loc, scale = sown["tokens"][0]
    found = Findings(inputs={"context", "target"})
    found.computed |= {
        "loc": _scaled(loc, scale),
        "scale": _scaled(scale, scale),
        "input_embeds": Computed(x_BSD, RELATIVE, RELATIVE),
        "attn_mask": Computed(mask_BS, 0.0),
        "encoder_hidden": Computed(sown["encoder"]["hidden"][-1], RELATIVE, RELATIVE),
        "quantile_preds": _scaled(quantiles, scale),
    }
    if "target" in case.tensors:
        target = (case.tensor("target") - loc) / scale
        scaled = (quantiles - loc[..., None]) / scale[..., None]
        loss = quantile_loss(scaled, target, config.quantiles)
        found.computed["loss"] = Computed(np.reshape(loss, 1), RELATIVE, RELATIVE)
    for match in case.matching(r"(.+)/quantile_preds"):
        other = case.tensor(f"{match[1]}/context")
        found.inputs.add(f"{match[1]}/context")
        ours, _ = _run(config, pipeline.variables, other)
        _, _, scale = normalise(jnp.asarray(other[:, -config.context_length :]))
        found.computed[match[0]] = _scaled(ours, scale)
    _check_forecasts(case, pipeline, found)
    return found


def _check_forecasts(case: Case, pipeline: ChronosBoltPipeline, found: Findings) -> None:
    context = case.tensor("context")
    scale = found.computed["scale"].value
    for match in case.matching(r"predict_h(\d+)"):
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            forecast = pipeline.predict(context, int(match[1]))
        found.computed[match[0]] = _scaled(forecast, scale)
    for name, levels in _PICKED.items():
        if f"{name}_q" in case.tensors:
            steps = case.tensor(f"{name}_q").shape[1]
            quantiles, median = pipeline.predict_quantiles(context, steps, levels)
            found.computed[f"{name}_q"] = _scaled(quantiles, scale)
            found.computed[f"{name}_mean"] = _scaled(median, scale)


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER)
def _run(config: BoltConfig, variables: Any, values_BL):
    found, sown = ChronosBolt(config).apply(variables, values_BL, mutable=["intermediates"])
    return found, sown["intermediates"]


def _scaled(value: Any, scale: Any) -> Computed:
    """Values [B, ...] in the units of their series, of scale [B, 1]: so is the absolute part."""
    scale = np.reshape(scale, (-1,) + (1,) * (np.ndim(value) - 1))
    return Computed(value, RELATIVE * scale, RELATIVE)
