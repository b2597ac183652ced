"""Tiny Chronos models as they are lowered: name -> config."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lowering.api import lower_graph_of
from lowering.chronos import sample_calls, sample_contexts, sample_patches
from lowering.graph import Graph
from lowering.ir import Arch, Policy, Program
from lowering.runtime.chronos import ChronosCard
from lowering.runtime.folder import Sample
from lowering.sample import make_sample
from lowering.trace import trace
from moejax.interop.chronos import initial
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_bolt import BoltConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config
from train.lower_chronos import (
    bolt_function,
    chronos_functions,
    empty_state,
    in_whole_heads,
    make_bolt_card,
    make_card,
    positions,
)

T5 = T5Config(
    vocab_size=64, d_model=48, d_kv=16, d_ff=64, num_layers=1, num_decoder_layers=2, num_heads=3
)
GATED = replace(T5, feed_forward="gated_gelu", tie_word_embeddings=False)
LIMITS = {"low_limit": -4.0, "high_limit": 4.0}
TOKENS = ChronosConfig(
    n_tokens=64, context_length=50, prediction_length=64, num_samples=2, tokenizer_kwargs=LIMITS
)
MIXTURE = replace(TOKENS, use_moe=True, num_experts=4, router_hidden_dim=24)
T5_MODELS: dict[str, ChronosModelConfig] = {
    "t5": ChronosModelConfig(t5=T5, chronos=TOKENS),
    "gated, own head": ChronosModelConfig(t5=GATED, chronos=replace(TOKENS, use_eos_token=False)),
    "shared, then experts": ChronosModelConfig(t5=T5, chronos=MIXTURE),
    "experts without norm": ChronosModelConfig(
        t5=GATED, chronos=replace(MIXTURE, expert_norm=False)
    ),
    "experts alone": ChronosModelConfig(
        t5=GATED, chronos=replace(MIXTURE, moe_architecture="expert_only")
    ),
    "blocks of experts' own": ChronosModelConfig(
        t5=T5, chronos=replace(MIXTURE, num_experts=3, shared_layers=1)
    ),
    "all of experts' own": ChronosModelConfig(
        t5=GATED,
        chronos=replace(MIXTURE, num_experts=3, shared_layers=1, moe_architecture="expert_only"),
    ),
}
POSITIONS = {
    name: ChronosModelConfig(t5=T5, chronos=replace(MIXTURE, head_mode="encoder", **options))
    for name, options in (
        ("positions", {"context_length": 70}),
        ("positions, experts alone", {"context_length": 70, "moe_architecture": "expert_only"}),
    )
}
BOLT_SIZES = {"context_length": 48, "prediction_length": 16, "input_patch_size": 8}
BOLTS = {
    "bolt": BoltConfig(t5=replace(T5, vocab_size=2), input_patch_stride=8, **BOLT_SIZES),
    "bolt, no register": BoltConfig(
        t5=replace(GATED, vocab_size=2),
        input_patch_stride=4,
        use_reg_token=False,
        quantiles=(0.05, 0.5, 0.95),
        **BOLT_SIZES,
    ),
}
BATCH = {"batch": 2}
Case = tuple[Callable[..., Any], Any, Sample, Any]


@functools.cache
def model(name: str) -> tuple[Any, Any]:
    """(config, variables of trained size, none of them uniform), heads as they are."""
    config = (T5_MODELS | POSITIONS | BOLTS)[name]
    variables = jax.eval_shape(lambda: initial(config, jax.random.key(0)))
    rng = np.random.default_rng(2)

    def numbers(path, leaf):
        drawn, place = rng.standard_normal(leaf.shape), jax.tree_util.keystr(path)
        if "norm" in place and "bias" not in place:
            return (1 + 0.1 * drawn).astype(np.float32)
        if "shared" in place or "relative_bias" in place:
            return (0.5 * drawn).astype(np.float32)
        scale = 0.1 if "bias" in place or leaf.ndim == 1 else leaf.shape[-2] ** -0.5
        return (scale * drawn).astype(np.float32)

    return config, jax.tree_util.tree_map_with_path(numbers, variables)


def card(name: str) -> ChronosCard:
    return make_card(model(name)[0], **BATCH)


@functools.cache
def cases(name: str) -> dict[str, Case]:
    """(function, variables, sample, state) of each program of a model."""
    config, variables = in_whole_heads(*model(name))
    if name in BOLTS:
        function = bolt_function(config)
        inputs = sample_patches(make_bolt_card(config, **BATCH))
        return {"bolt": (function, variables, make_sample(function, variables, inputs), None)}
    own = card(name)
    if name in POSITIONS:
        function = positions(config, own.sizes.horizon)
        sample = make_sample(function, variables, sample_contexts(own))
        return {"positions": (function, variables, sample, None)}
    functions, state = chronos_functions(config), empty_state(config, own.sizes)
    samples = sample_calls(functions, variables, state, own)
    return {part: (functions[part], variables, samples[part], state) for part in functions}


@functools.cache
def graphs(name: str) -> dict[str, Graph]:
    """The functions traced."""
    return {
        part: trace(function, variables, sample.inputs, state)
        for part, (function, variables, sample, state) in cases(name).items()
    }


def lowered(name: str, policy: Policy, arch: Arch = "wormhole_b0") -> dict[str, Program]:
    """The programs."""
    return {
        part: lower_graph_of(
            graph, name=f"{name}/{part}/{policy}", policy=policy, arch=arch
        ).program
        for part, graph in graphs(name).items()
    }
