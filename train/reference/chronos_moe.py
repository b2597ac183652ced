"""Recorded runs of Chronos mixtures, in both head modes."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from moejax.forecasting.chronos.generate import generate
from moejax.forecasting.chronos.pipeline import ChronosMoEPipeline
from moejax.interop.chronos import published_tensors
from moejax.interop.lm.load import read_fields
from moejax.models.chronos_losses import mixture_loss, token_loss
from train.reference.lm_runs import COMPILER
from train.reference.rows import Case, Computed, Findings

CLOSE = {"atol": 1e-4}
EXACT = {"atol": 0.0}
_INPUTS = ("context", "labels", "decoder_input_ids")
# what is called in a recording as tensors of a checkpoint are
_GRADIENTS = {
    "grad_router_gate_0_weight": "router.gate.0.weight",
    "grad_router_gate_3_weight": "router.gate.3.weight",
    "grad_expert0_lm_head": "experts.0.lm_head.weight",
    "grad_shared_embedding": "model.shared.weight",
}


def check_mixture(case: Case) -> Findings:
    """Everything from config.json, the weights, contexts and labels."""
    pipeline = ChronosMoEPipeline.from_pretrained(case.folder)
    config = pipeline.config
    tokens = pipeline.tokenizer.context(case.tensor("context"))
    decoder_ids = case.tensors.get("decoder_input_ids")
    found = Findings(inputs=set(_INPUTS))
    if not _names_limits(case.folder):
        found.inputs |= {"input_ids", "attention_mask"}
        tokens = replace(tokens, ids=case.tensor("input_ids"), mask=case.tensor("attention_mask"))
    inputs = tokens.ids, tokens.mask, decoder_ids
    out, sown = _forward(config, pipeline.variables, inputs)
    routing = out.routing
    found.computed |= {
        "scale": Computed(tokens.scale, 0.0, 1e-6),
        "router_logits": Computed(routing.logits, **CLOSE),
        "router_probs": Computed(routing.scores, **CLOSE),
        "router_context": Computed(sown["context"][0], **CLOSE),
        "expert_indices": Computed(routing.index, **EXACT),
        "load_balancing_loss": Computed(np.reshape(out.balance, 1), **CLOSE),
    }
    for name, array in (("input_ids", tokens.ids), ("attention_mask", tokens.mask)):
        if name not in found.inputs:
            found.computed[name] = Computed(array, **EXACT)
    for name in ("gates", "top_k_probs"):
        found.computed[name] = Computed(routing.weight, **CLOSE)
    for name in ("logits", "combined_logits"):
        found.computed[name] = Computed(out.logits, **CLOSE)
    _check_training(case, config, pipeline.variables, inputs, out, found)
    if config.chronos.head_mode == "encoder":
        apply = partial(config.module().apply, pipeline.variables, *inputs[:2])
        found.computed["shared_hidden"] = Computed(apply(method="read"), **CLOSE)
        found.computed["expert_logits_all"] = Computed(apply(method="expert_logits"), **CLOSE)
    else:
        found.computed["encoder_states"] = Computed(sown["states"][0], **CLOSE)
        found.computed["decoder_hidden"] = Computed(sown["decoder_hidden"][0], **CLOSE)
        _check_paths(case, pipeline, inputs, found)
    return found


def _names_limits(folder: Path) -> bool:
    """Whether the config says where the bins lie; the fork's does not, so ids are inputs there."""
    fields = read_fields(folder)
    parts = fields.get("moe", {}), fields.get("chronos_config", {})
    return any("tokenizer_kwargs" in part for part in parts)


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER)
def _forward(config, variables: Any, inputs):
    out, sown = config.module().apply(variables, *inputs, mutable=["intermediates"])
    return out, sown["intermediates"]


def _check_training(case: Case, config, variables, inputs, out, found: Findings) -> None:
    labels = jnp.asarray(case.tensor("labels"))
    weight = config.chronos.load_balancing_weight

    @partial(jax.jit, compiler_options=COMPILER)
    def run(params):
        return jax.value_and_grad(
            lambda params: mixture_loss(
                config.module().apply({"params": params}, *inputs), labels, weight
            )
        )(params)

    total, gradient = run(variables["params"])
    flat: dict[str, Any] = flatten_dict(gradient, sep="/")
    tensors = published_tensors(config, flat)
    found.computed["ce_loss"] = Computed(np.reshape(token_loss(out.logits, labels), 1), **CLOSE)
    found.computed["total_loss"] = Computed(np.reshape(total, 1), **CLOSE)
    for name, tensor in _GRADIENTS.items():
        found.computed[name] = Computed(tensors[tensor], **CLOSE)


def _check_paths(case: Case, pipeline: ChronosMoEPipeline, inputs, found: Findings) -> None:
    if "greedy_tokens" in case.tensors:
        steps = case.tensor("greedy_tokens").shape[1]
        keys = jax.random.split(jax.random.key(0), len(inputs[0]))
        options = {"steps": steps, "samples": 1, "top_k": 1}
        variables = pipeline.variables
        path, _ = generate(pipeline.config, variables, *inputs[:2], keys, 1.0, None, **options)
        found.computed["greedy_tokens"] = Computed(path[:, 0], **EXACT)
    for match in case.matching(r"rollout_(\d+)p(\d+)"):
        steps = int(float(f"{match[1]}.{match[2]}") * pipeline.prediction_length)
        greedy = pipeline.sampling(num_samples=1, top_k=1)
        samples, routings = pipeline.roll_out(list(case.tensor("context")), steps, greedy)
        found.computed[match[0]] = Computed(samples[:, 0], **CLOSE)
        chosen = np.stack([routing.index for routing in routings])
        found.computed["rollout_expert_indices_per_window"] = Computed(chosen, **EXACT)
