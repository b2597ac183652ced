"""Recorded forecasts of MOIRAI-MoE: packing, every step of the loop on recorded draws, means.

Horizon, patch size and numbers of samples are those of the recorded tensors.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.distributions import Distribution
from moejax.forecasting.moirai.arrange import arrange, known_tokens
from moejax.forecasting.moirai.autoregress import Plan, given, mean, roll_out, steps_of
from moejax.forecasting.moirai.packing import Layout, Window, layout_of, pack
from moejax.models.moirai_moe import MoiraiMoEConfig, Tokens
from train.reference.rows import Case, Computed, Findings

ACTIVATION = {"atol": 2e-5, "rtol": 1e-5}
ROLL_OUT = {"atol": 5e-5, "rtol": 1e-5}
EXACT = {"atol": 0.0}
_RESULTS = ("mean_rollout", "feedback_forecast")


def check_forecast(case: Case, inputs: Any, config: MoiraiMoEConfig, variables: Any) -> Findings:
    """Our values of what is recorded; ValueError where nothing says how far to forecast."""
    window, horizon = _window(inputs), _horizon(case)
    patch = _patch(case, config)
    layout = layout_of(window, horizon, patch)
    tokens = pack(window, horizon, patch=patch, width=config.patch_length)
    found = Findings(inputs={"feedback"})
    for name, values in vars(tokens).items():
        found.computed[f"convert.{name}"] = Computed(values, **EXACT)
    arranged = jax.tree.map(jnp.asarray, arrange(tokens, layout, layout.past))
    run = _Run(config, variables, arranged, layout)
    means, _ = run(mean, np.zeros((1,)), 1)
    found.computed["mean_rollout"] = Computed(_formatted(means, layout), **ROLL_OUT)
    if "feedback" in case.tensors:
        draws = case.tensor("feedback").swapaxes(0, 1)  # samples first
        values, distributions = run(given, draws, len(draws))
        found.computed["feedback_forecast"] = Computed(_formatted(values, layout), **EXACT)
        found.computed |= _steps(distributions, len(draws))
    return found


def _window(inputs: Any) -> Window:
    names = {
        "ahead": "feat_dynamic_real",
        "ahead_observed": "observed_feat_dynamic_real",
        "past_only": "past_feat_dynamic_real",
        "past_only_observed": "past_observed_feat_dynamic_real",
    }
    others = {ours: inputs[theirs] for ours, theirs in names.items() if theirs in inputs}
    flags = {name: one.astype(bool) for name, one in others.items() if name.endswith("observed")}
    return Window(
        target=inputs["past_target"],
        observed=inputs["past_observed_target"].astype(bool),
        pad=inputs["past_is_pad"].astype(bool),
        **others | flags,
    )


def _horizon(case: Case) -> int:
    for name in _RESULTS:
        if name in case.tensors:
            return case.tensors[name].shape[2]
    raise ValueError(f"neither of {_RESULTS} is recorded, so the horizon is not known")


def _patch(case: Case, config: MoiraiMoEConfig) -> int:
    if "convert.patch_size" in case.tensors:
        return int(case.tensors["convert.patch_size"].flat[0])
    return 16 if 16 in config.patch_sizes else config.patch_sizes[0]


class _Run:
    def __init__(self, config: MoiraiMoEConfig, variables: Any, tokens: Tokens, layout: Layout):
        self.config, self.variables, self.tokens, self.layout = config, variables, tokens, layout

    def __call__(self, draw: Any, source: Any, samples: int) -> tuple[Any, list[Distribution]]:
        plan = Plan(
            targets=self.layout.targets,
            past=self.layout.past,
            known=known_tokens(self.layout, self.layout.past),
            patches=self.layout.future,
            samples=samples,
        )
        options = {"draw": draw, "record": True}
        return roll_out(
            self.config, plan, self.variables, self.tokens, jnp.asarray(source), **options
        )


def _formatted(values: Any, layout: Layout) -> np.ndarray:
    """[B, S, H], or [B, S, H, C] of several targets."""
    steps = np.asarray(steps_of(values, layout.patch, layout.horizon))
    return steps[..., 0] if layout.targets == 1 else steps


def _steps(distributions: list[Distribution], samples: int) -> dict[str, Computed]:
    """The first step's distribution has no axis of samples, later ones [N, B, C, ...]."""
    first, *loops = distributions
    steps = [first]
    for loop in loops:
        for index in range(len(loop.loc)):
            steps.append(
                jax.tree.map(
                    lambda leaf, i=index: leaf[i].reshape(samples, -1, *leaf.shape[2:]), loop
                )
            )
    computed = {}
    for number, one in enumerate(steps):
        parts = {"loc": one.loc, "scale": one.scale}
        parts |= {f"param.{name}": value for name, value in one.params.items()}
        for name, value in parts.items():
            computed[f"step{number}.{name}"] = Computed(value, **ACTIVATION)
    return computed
