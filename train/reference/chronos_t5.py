"""Recorded runs of Chronos-T5: tokens, states, logits, loss, greedy paths, filters, forecasts."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.forecasting.chronos.generate import generate
from moejax.forecasting.chronos.pipeline import ChronosPipeline
from moejax.forecasting.chronos.sampling import forbid, warp
from moejax.layers.attention import attention
from moejax.layers.norm import rms_norm
from moejax.layers.t5 import relative_buckets
from moejax.models.chronos_losses import IGNORED, shift_right, token_loss
from moejax.models.t5 import T5, T5Config, encoder_bias
from train.reference.lm_runs import COMPILER
from train.reference.rows import Case, Computed, Findings

EXACT = {"atol": 0.0}
SCALE = {"atol": 0.0, "rtol": 1e-6}
HIDDEN = {"atol": 1e-4}
LOGITS = {"atol": 2e-4}
PROBABILITY = {"atol": 1e-5}
FORECAST = {"atol": 0.0, "rtol": 1e-5}
# the shorter names of a recording without the tensors in between
_FIRST, _LAST = 32, 65


def check_t5(case: Case) -> Findings:
    """Everything from config.json, the weights and the contexts."""
    pipeline = ChronosPipeline.from_pretrained(case.folder)
    found = Findings(
        inputs={"context", "decoder_input_ids", "future", "warp/logits", "relpos_line"}
    )
    tokens = pipeline.tokenizer.context(case.tensor("context"))
    for name in ("input_ids", "ids"):
        found.computed[name] = Computed(tokens.ids, **EXACT)
    for name in ("attention_mask", "mask"):
        found.computed[name] = Computed(tokens.mask, **EXACT)
    found.computed["scale"] = Computed(tokens.scale, **SCALE)
    decoder_ids = case.tensor("decoder_input_ids")
    _check_forward(pipeline, tokens, decoder_ids, found)
    if "future" in case.tensors:
        _check_labels(case, pipeline, tokens, found)
    if "relpos_line" in case.tensors:
        _check_buckets(case, pipeline.config.t5, found)
    _check_greedy(case, pipeline, tokens, found)
    _check_filters(case, pipeline, tokens, found)
    _check_forecasts(case, pipeline, found)
    return found


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER)
def _forward(config: T5Config, variables: Any, ids, mask, decoder_ids):
    logits, sown = T5(config).apply(variables, ids, mask, decoder_ids, mutable=["intermediates"])
    return logits, sown["intermediates"]


def _check_forward(pipeline: ChronosPipeline, tokens, decoder_ids, found: Findings) -> None:
    config = pipeline.config.t5
    logits, sown = _forward(config, pipeline.variables, tokens.ids, tokens.mask, decoder_ids)
    hidden = sown["encoder"]["hidden"]
    for index, states in enumerate(hidden):
        found.computed[f"encoder_hidden_{index}"] = Computed(states, **HIDDEN)
    found.computed |= {
        "encoder_last_hidden_state": Computed(hidden[-1], **HIDDEN),
        "embed_fp32_first32": Computed(hidden[-1][:, :_FIRST], **HIDDEN),
        "embed_fp32_last65": Computed(hidden[-1][:, -_LAST:], **HIDDEN),
        "decoder_last_hidden_state": Computed(sown["decoder_hidden"][0], **HIDDEN),
        "decoder_logits": Computed(logits, **LOGITS),
        "logits_fp32": Computed(logits, **LOGITS),
    }
    weights = _first_weights(config, pipeline.variables["params"], hidden[0], tokens.mask)
    found.computed["encoder_attn_weights_layer0"] = Computed(weights, **PROBABILITY)
    everything = np.ones_like(tokens.mask)
    start = np.full((len(tokens.ids), 1), config.decoder_start_token_id, np.int32)
    unmasked, _ = _forward(config, pipeline.variables, tokens.ids, everything, start)
    found.computed["logits_step0_no_mask"] = Computed(unmasked, **LOGITS)


def _first_weights(config: T5Config, params: Any, x_BSD, mask_BS) -> jax.Array:
    """Weights [B, N, S, S] of the encoder's first attention: what it makes of unit vectors."""
    encoder = params["encoder"]
    block = encoder["blocks_0"]
    x_BSD = rms_norm(x_BSD, block["attention_norm"]["scale"], eps=config.layer_norm_epsilon)
    batch, steps, _ = x_BSD.shape

    def heads(name: str) -> jax.Array:
        y = x_BSD @ block["attention"][name]
        return y.reshape(batch, steps, config.num_heads, -1).transpose(0, 2, 1, 3)

    units = jnp.broadcast_to(jnp.eye(steps), (batch, config.num_heads, steps, steps))
    bias = encoder_bias(encoder["relative_bias"], steps, config)
    mask = jnp.asarray(mask_BS)[:, None, None, :]
    return attention(heads("query"), heads("key"), units, mask, bias, scale=1.0)


def _check_labels(case: Case, pipeline: ChronosPipeline, tokens, found: Findings) -> None:
    label = pipeline.tokenizer.label(case.tensor("future"), tokens.scale)
    labels = np.where(label.mask, label.ids, IGNORED)
    t5 = pipeline.config.t5
    found.computed["labels"] = Computed(labels, **EXACT)
    found.inputs.discard("decoder_input_ids")
    shifted = shift_right(jnp.asarray(labels), t5.decoder_start_token_id, t5.pad_token_id)
    found.computed["decoder_input_ids"] = Computed(shifted, **EXACT)
    logits = found.computed["decoder_logits"].value
    loss = token_loss(logits, jnp.asarray(labels))
    found.computed["loss"] = Computed(np.reshape(loss, 1), **HIDDEN)


def _check_buckets(case: Case, config: T5Config, found: Findings) -> None:
    sizes = {
        "num_buckets": config.relative_attention_num_buckets,
        "max_distance": config.relative_attention_max_distance,
    }
    for name, both in (("bucket_bidirectional", True), ("bucket_causal", False)):
        line = relative_buckets(case.tensor("relpos_line"), bidirectional=both, **sizes)
        found.computed[name] = Computed(line, **EXACT)


def _check_greedy(case: Case, pipeline: ChronosPipeline, tokens, found: Findings) -> None:
    """With the cache where the end is forbidden, without one where it is allowed."""
    config, variables = pipeline.config, pipeline.variables
    t5, batch = config.t5, len(tokens.ids)
    start = np.full((batch, 1), t5.decoder_start_token_id, np.int32)
    if "greedy_tokens_eos_suppressed" in case.tensors:
        steps = case.tensor("greedy_tokens_eos_suppressed").shape[1] - 1
        keys = jax.random.split(jax.random.key(0), batch)
        options = {"steps": steps, "samples": 1, "top_k": 1}
        path, _ = generate(config, variables, tokens.ids, tokens.mask, keys, 1.0, None, **options)
        path = np.concatenate([start, path[:, 0]], axis=1)
        found.computed["greedy_tokens_eos_suppressed"] = Computed(path, **EXACT)
    if "greedy_tokens_free" in case.tensors:
        steps = case.tensor("greedy_tokens_free").shape[1] - 1
        path = np.full((batch, steps + 1), t5.pad_token_id, np.int32)
        path[:, 0] = t5.decoder_start_token_id
        live = np.ones(batch, bool)
        for step in range(steps):
            logits, _ = _forward(t5, variables, tokens.ids, tokens.mask, path)
            best = np.asarray(jnp.argmax(logits[:, step], axis=-1))
            path[:, step + 1] = np.where(live, best, t5.pad_token_id)
            live &= best != t5.eos_token_id
        found.computed["greedy_tokens_free"] = Computed(path, **EXACT)


def _check_filters(case: Case, pipeline: ChronosPipeline, tokens, found: Findings) -> None:
    end = pipeline.config.chronos.eos_token_id
    for match in case.matching(r"warp/t([\d.]+)_k(\d+)_p([\d.]+)"):
        temperature, k, p = float(match[1]), int(match[2]), float(match[3])
        logits = forbid(jnp.asarray(case.tensor("warp/logits")), end)
        logits = warp(logits, temperature, k, None if p == 1 else p)
        found.computed[match[0]] = Computed(jax.nn.softmax(logits, axis=-1), **PROBABILITY)
    if "sample_prob_first_token" not in case.tensors:
        return
    t5 = pipeline.config.t5
    start = np.full((1, 1), t5.decoder_start_token_id, np.int32)
    logits, _ = _forward(t5, pipeline.variables, tokens.ids[:1], tokens.mask[:1], start)
    prob_V = np.asarray(jax.nn.softmax(forbid(logits[:, 0], end)[0]))
    found.computed["sample_prob_first_token"] = Computed(prob_V, **PROBABILITY)
    for match in case.matching(r"sample_hist_first_token_(\d+)"):
        count = int(match[1])
        # six deviations of the likeliest token's count
        widest = 6 * float(np.sqrt(count * prob_V * (1 - prob_V)).max())
        found.computed[match[0]] = Computed(count * prob_V, atol=widest)


def _check_forecasts(case: Case, pipeline: ChronosPipeline, found: Findings) -> None:
    for match in case.matching(r"predict_topk1_(?:(\w+)_)?h(\d+)"):
        source = match[1] or "context"
        found.inputs.add(source)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            forecast = pipeline.predict(case.tensor(source), int(match[2]), num_samples=1, top_k=1)
        found.computed[match[0]] = Computed(forecast, **FORECAST)
    if "embed_list" in case.tensors:
        first, second, third = case.tensor("context")[:3]
        series = [first[-20:], second[len(second) // 3 :], third]
        states, scale = pipeline.embed(series)
        found.computed["embed_list"] = Computed(states, **HIDDEN)
        found.computed["embed_list_scale"] = Computed(scale, **SCALE)
