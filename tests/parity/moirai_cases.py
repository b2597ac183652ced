"""Tiny MOIRAI-MoEs as they are lowered: name -> (config, sizes)."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lowering.forecaster import sample_inputs
from lowering.runtime.packing import ForecastSizes
from moejax.distributions import DistributionConfig
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, Tokens, empty_tokens
from train.lower_moirai import choose_sizes, forward, make_card

TINY = MoiraiMoEConfig(d_model=128, d_ff=32, num_layers=2, max_seq_len=64)
STUDENT_T = DistributionConfig(components=("student_t",), mixture=False)
# without padding to whole tiles anywhere, and never one row of tokens alone
SIZES = {"batch": 2, "context": 60, "horizon": 40}
FORECASTERS: dict[str, tuple[MoiraiMoEConfig, dict[str, int]]] = {
    "mixture": (TINY, {**SIZES, "targets": 2, "known_ahead": 1, "past_only": 1}),
    "smaller patch": (replace(TINY, patch_sizes=(8, 16, 32)), {**SIZES, "patch_size": 8}),
    "student-t without scaler": (replace(TINY, distribution=STUDENT_T, scaling=False), SIZES),
    "learned router, shared expert": (
        replace(TINY, routing="learned", num_experts=8, num_shared_experts=1),
        SIZES,
    ),
    "nearest, one of 5": (replace(TINY, routing="nearest", num_experts=5, top_k=1), SIZES),
    "one row, one step": (TINY, {"batch": 1, "context": 16, "horizon": 16}),
}

Case = tuple[Callable[..., Any], Any, dict[str, np.ndarray]]


def random_variables(config: MoiraiMoEConfig, seed: int = 0) -> Any:
    """Numbers of trained size for every variable, none of them uniform."""
    model = MoiraiMoE(replace(config, dispatch="dense"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), empty_tokens(config, 1, 4))
    rng = np.random.default_rng(seed)

    def numbers(path, leaf):
        drawn, name = rng.standard_normal(leaf.shape), jax.tree_util.keystr(path)
        if "scale" in name:
            return (1 + 0.1 * drawn).astype(np.float32)
        fan_in = 1 if "centroids" in name else leaf.shape[-2] if leaf.ndim > 1 else 100
        return (drawn / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(numbers, shapes)


def sizes_of(name: str) -> ForecastSizes:
    config, sizes = FORECASTERS[name]
    return choose_sizes(config, **sizes)


@functools.cache
def forecaster(name: str) -> Case:
    """(function, variables, inputs) of the program."""
    config, _ = FORECASTERS[name]
    card = make_card(config, sizes_of(name))
    return forward(config, card.sizes), random_variables(config), sample_inputs(card)


def mixed_patches() -> Case:
    """The module as it is, on rows of tokens of all patch sizes and one that it does not know."""
    config = replace(TINY, patch_sizes=(8, 16, 32))
    model, rng = MoiraiMoE(replace(config, dispatch="dense")), np.random.default_rng(0)
    shape = 2, 9
    patch_size = rng.choice([8, 16, 32, 4], shape).astype(np.int32)
    inputs = {
        "target": rng.normal(3, 2, (*shape, 32)).astype(np.float32),
        "observed": rng.random((*shape, 32)) < 0.8,
        "sample": np.sort(rng.integers(0, 3, shape)).astype(np.int32),
        "time": np.tile(np.arange(9, dtype=np.int32), (2, 1)),
        "variate": rng.integers(0, 2, shape).astype(np.int32),
        "predicted": np.tile(np.arange(9) > 6, (2, 1)),
        "patch_size": patch_size,
    }

    def function(variables, *fields):
        return model.apply(variables, Tokens(*fields), method="outputs")

    return function, random_variables(config), inputs
