"""The measuring process of `moejax bench moirai`: prints CPU seconds by case as JSON."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.forecasting.moirai.forecaster import MoiraiMoEForecaster
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, Tokens
from moejax.models.moirai_moe_sizes import SMALL

CONTEXT, HORIZON, PATCH = 512, 96, 16
BATCHES, SAMPLES = (1, 32), (1, 100)
SQUARE = 1024


def main() -> None:
    """CPU seconds of each case, medians after a warm-up; and the rate of a large matmul."""
    rounds, cases = json.loads(sys.argv[1]), make_cases(SMALL)
    print(json.dumps({name: cpu_seconds(call, rounds) for name, call in cases.items()}))


def make_cases(config: MoiraiMoEConfig) -> dict[str, Callable[[], Any]]:
    """What is timed, by name, of a model with random weights and centroids."""
    model = MoiraiMoE(config)
    tokens = random_tokens(config, 1)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    forward = jax.jit(lambda tokens: model.apply(variables, tokens).params)  # type: ignore[union-attr]
    cases: dict[str, Callable[[], Any]] = {}
    for batch in BATCHES:
        cases[f"forward_{batch}"] = partial(_wait, forward, random_tokens(config, batch))
    forecaster = MoiraiMoEForecaster(config, variables, context_length=CONTEXT)
    past = np.random.default_rng(0).normal(size=(1, CONTEXT)).cumsum(axis=1)
    for samples in SAMPLES:
        options = {"num_samples": samples}
        cases[f"forecast_{samples}"] = partial(forecaster.predict, past, HORIZON, **options)
    square = jax.random.normal(jax.random.key(1), (SQUARE, SQUARE))
    cases["matmul"] = partial(_wait, jax.jit(jnp.matmul), square, square)
    return cases


def _wait(function: Callable[..., Any], *args: Any) -> None:
    jax.block_until_ready(function(*args))


def random_tokens(config: MoiraiMoEConfig, batch: int) -> Tokens:
    """A context of one series and the patch behind it, by row."""
    length = CONTEXT // PATCH + 1
    shape = batch, length, config.patch_length
    values = jax.random.normal(jax.random.key(2), shape)
    ids = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    return Tokens(
        target=values,
        observed_mask=jnp.ones(values.shape, bool),
        sample_id=jnp.ones_like(ids),
        time_id=ids,
        variate_id=jnp.zeros_like(ids),
        prediction_mask=ids == length - 1,
        patch_size=jnp.full_like(ids, PATCH),
    )


def cpu_seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median over rounds, after two calls that don't count."""
    found = []
    for index in range(rounds + 2):
        started = time.process_time()
        call()
        if index >= 2:
            found.append(time.process_time() - started)
    return statistics.median(found)


if __name__ == "__main__":
    main()
