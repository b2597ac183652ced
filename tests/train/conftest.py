"""A tiny model on a tiny series, with all that the loop asks for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from train.metrics import Units, forecast_errors, forecast_scores
from train.task import Task

SEQ_LEN, PRED_LEN, CHANNELS = 8, 4, 2


def make_tiny_task(rows: int = 300, bad_rows: tuple[int, ...] = ()) -> Task:
    """A linear map over time with noise on its input (so that randomness matters)."""
    t = np.arange(rows)[:, None]
    noise = np.random.default_rng(0).normal(size=(rows, CHANNELS))
    values = (np.sin(t / 5 + np.arange(CHANNELS)) + 0.1 * noise).astype(np.float32)
    values[list(bad_rows)] = np.nan
    model = nn.Dense(PRED_LEN)
    units = Units(mean=np.zeros(CHANNELS), scale=np.ones(CHANNELS), naive=np.ones(CHANNELS))

    def cut(arrays, starts_B):
        shape = (SEQ_LEN + PRED_LEN, CHANNELS)
        return jax.vmap(lambda start: jax.lax.dynamic_slice(arrays, (start, 0), shape))(starts_B)

    def apply(params, window_BLC):
        x_BCS = jnp.swapaxes(window_BLC[:, :SEQ_LEN], 1, 2)
        return jnp.swapaxes(model.apply({"params": params}, x_BCS), 1, 2)

    def loss(params, batch, key):
        noisy = batch + 0.01 * jax.random.normal(key, batch.shape)
        return jnp.mean((apply(params, noisy) - batch[:, SEQ_LEN:]) ** 2), {}

    first = np.arange(0, rows // 2, dtype=np.int32)
    later = np.arange(rows // 2, rows - SEQ_LEN - PRED_LEN, dtype=np.int32)
    return Task(
        arrays=values,
        indices={"train": first, "val": later[: len(later) // 2], "test": later[len(later) // 2 :]},
        cut=cut,
        init=lambda key: model.init(key, jnp.zeros((1, CHANNELS, SEQ_LEN)))["params"],
        loss=loss,
        errors=lambda params, batch: forecast_errors(
            apply(params, batch), batch[:, SEQ_LEN:], units
        ),
        scores=lambda means: forecast_scores(means, units),
        fingerprint="tiny",
    )


@pytest.fixture(scope="session")
def tiny_task():
    return make_tiny_task


@pytest.fixture(scope="module")
def compile_once(tmp_path_factory):
    """Programs that were compiled in a module are found again, though made from other closures."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it looks at the settings once
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
