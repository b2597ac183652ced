"""Recipes of MoLE and its base models, and what the training loop needs of them.

A base model is one expert without a router, for example DLinear:
--set model.num_experts=1 model.router=none model.head_dropout=0
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from moejax.models.mole import MoLE, MoLEConfig
from moejax.models.mole_pruning import keep_experts as keep_experts
from moejax.models.mole_pruning import rarely_used as rarely_used
from train.config import Config, LoopConfig
from train.data import NUM_TIME_FEATURES, DataConfig, Dataset, prepare
from train.metrics import Units, forecast_errors, forecast_scores, seasonal_naive_error
from train.optim import OptimConfig
from train.task import Task

WATCHED = "mse"


def mole_debug() -> Config:
    """A tiny MoLE_DLinear on the temperatures that a dependency ships; nothing is downloaded.

    moejax train mole_debug
    3 s. Test MSE 0.004 (the series is smooth).
    """
    return Config(
        recipe="mole_debug",
        model=MoLEConfig(
            seq_len=48, pred_len=24, num_channels=2, num_experts=2, kernel_size=25, head_dropout=0.2
        ),
        data=DataConfig(name="temperatures"),
        optim=OptimConfig(learning_rate=5e-3),
        loop=LoopConfig(epochs=3, batch_size=64),
    )


def mole_etth1() -> Config:
    """MoLE_DLinear, 4 experts, ETTh1 96 -> 96.

    moejax train mole_etth1
    5 s on 2 cores. Test MSE 0.383 to 0.385 over four seeds.
    """
    return Config(
        recipe="mole_etth1",
        model=MoLEConfig(seq_len=96, pred_len=96, num_experts=4, head_dropout=0.2),
        data=DataConfig(name="etth1"),
        optim=OptimConfig(learning_rate=1e-3),
        loop=LoopConfig(epochs=15, batch_size=32, patience=4),
    )


def dlinear_etth1() -> Config:
    """DLinear, the base of mole_etth1: one expert, no router.

    moejax train dlinear_etth1
    2 s on 2 cores. Test MSE 0.384 to 0.388 over four seeds.
    """
    return _base(mole_etth1(), "dlinear_etth1")


def rlinear_etth1() -> Config:
    """RLinear, ETTh1 336 -> 96.

    moejax train rlinear_etth1
    3 s on 2 cores. Test MSE 0.370.
    """
    config = _base(mole_etth1(), "rlinear_etth1")
    return replace(
        config,
        model=replace(config.model, base="rlinear", seq_len=336),
        optim=OptimConfig(learning_rate=5e-3),
    )


def mole_etth2() -> Config:
    """MoLE_DLinear, 4 experts, ETTh2 336 -> 96.

    moejax train mole_etth2
    7 s on 2 cores. Test MSE 0.293.
    """
    return Config(
        recipe="mole_etth2",
        model=MoLEConfig(seq_len=336, pred_len=96, num_experts=4, head_dropout=0.5),
        data=DataConfig(name="etth2"),
        optim=OptimConfig(learning_rate=5e-4),
        loop=LoopConfig(epochs=10, batch_size=32, patience=3),
    )


def dlinear_etth2() -> Config:
    """DLinear, the base of mole_etth2: one expert, no router.

    moejax train dlinear_etth2
    4 s on 2 cores. Test MSE 0.297.
    """
    return _base(mole_etth2(), "dlinear_etth2")


def mole_weather() -> Config:
    """MoLE_DLinear, 4 experts, Weather (21 channels, every 10 minutes) 336 -> 96.

    moejax train mole_weather
    40 s on 2 cores. Test MSE 0.153.
    """
    return Config(
        recipe="mole_weather",
        model=MoLEConfig(
            seq_len=336, pred_len=96, num_channels=21, num_experts=4, head_dropout=0.2
        ),
        data=DataConfig(name="weather"),
        optim=OptimConfig(learning_rate=5e-3),
        loop=LoopConfig(epochs=6, batch_size=32, patience=3),
    )


def dlinear_weather() -> Config:
    """DLinear, the base of mole_weather: one expert, no router.

    moejax train dlinear_weather
    13 s on 2 cores. Test MSE 0.177.
    """
    return _base(mole_weather(), "dlinear_weather")


def mole_csv() -> Config:
    """MoLE_DLinear, 4 experts, on your own CSV with a date column and any number of numeric ones.

    moejax train mole_csv --set data.csv=FILE
    Time and score depend on the file.
    """
    return Config(
        recipe="mole_csv",
        model=MoLEConfig(seq_len=96, pred_len=24, num_experts=4, head_dropout=0.2),
        data=DataConfig(name="csv"),
        optim=OptimConfig(learning_rate=1e-3),
        loop=LoopConfig(epochs=15, batch_size=32, patience=4),
    )


def _base(config: Config, recipe: str) -> Config:
    """The same run with one expert and no router."""
    model = replace(config.model, num_experts=1, router="none", head_dropout=0.0)
    return replace(config, recipe=recipe, model=model)


RECIPES = (
    mole_debug,
    mole_etth1,
    mole_etth2,
    mole_weather,
    mole_csv,
    dlinear_etth1,
    rlinear_etth1,
    dlinear_etth2,
    dlinear_weather,
)


def load(config: Config) -> Dataset:
    """The data of a config, ready for training."""
    return prepare(config.data, seq_len=config.model.seq_len, pred_len=config.model.pred_len)


def resolve(config: Config, dataset: Dataset) -> Config:
    """The config with the sizes that the data decides: channels and calendar features."""
    model = replace(
        config.model,
        num_channels=dataset.series.num_channels,
        num_time_features=NUM_TIME_FEATURES[config.data.freq],
    )
    return replace(config, model=model)


def misfit(config: Config, dataset: Dataset) -> tuple[str, str] | None:
    """(what the data has, what the model needs) where a saved config does not fit its data."""
    found, needed = dataset.series.num_channels, config.model.num_channels
    return (f"the data has {found} channels", str(needed)) if found != needed else None


def result(final: dict[str, Any]) -> str:
    """A finished run in a line."""
    return (
        f"test mse {final['test_mse']:.4f}, mae {final['test_mae']:.4f} over all "
        f"{final['test_windows']} windows"
    )


def make_model(config: Config) -> MoLE:
    """The Linen module; parameters as `make_task(...).init` gives them."""
    return MoLE(config.model)


def make_task(config: Config, dataset: Dataset) -> Task:
    """MoLE on windows of a series: MSE over the target channels plus the auxiliary loss."""
    model: Any = make_model(config)
    size: MoLEConfig = config.model
    units = dataset_units(dataset)

    def cut(arrays: dict[str, jax.Array], starts_B: jax.Array) -> dict[str, jax.Array]:
        """Windows x [B,S,C], targets y [B,P,T], calendar features of the first step mark [B,F]."""
        length = (size.seq_len + size.pred_len, size.num_channels)
        slices = jax.vmap(lambda start: jax.lax.dynamic_slice(arrays["rows"], (start, 0), length))
        window_BLC = slices(starts_B)
        return {
            "x": window_BLC[:, : size.seq_len],
            "y": window_BLC[:, size.seq_len :, dataset.targets],
            "mark": arrays["marks"][starts_B],
        }

    def init(key: jax.Array) -> Any:
        x = jnp.zeros((1, size.seq_len, size.num_channels))
        mark = jnp.zeros((1, size.num_time_features))
        return model.init(key, x, mark)["params"]

    def loss(
        params: Any, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables, rngs = {"params": params}, {"dropout": key}
        forecast = model.apply(variables, batch["x"], batch["mark"], train=True, rngs=rngs)
        mse = jnp.mean((forecast.y[..., dataset.targets] - batch["y"]) ** 2)
        return mse + forecast.aux_loss, {"mse": mse}

    def errors(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        forecast = model.apply({"params": params}, batch["x"], batch["mark"])
        return forecast_errors(forecast.y[..., dataset.targets], batch["y"], units)

    return Task(
        arrays={"rows": dataset.scaled, "marks": dataset.marks},
        indices=dataset.starts,
        cut=cut,
        init=init,
        loss=loss,
        errors=errors,
        scores=lambda means: forecast_scores(means, units),
        fingerprint=hashlib.sha256(dataset.scaled.tobytes() + dataset.marks.tobytes()).hexdigest(),
        notes=dataset.series.notes,
    )


def dataset_units(dataset: Dataset) -> Units:
    """Units of the target channels, the naive error taken on the training rows."""
    train = dataset.scaled[slice(*dataset.splits.train), dataset.targets].astype(float)
    return Units(
        mean=dataset.scaler.mean[dataset.targets],
        scale=dataset.scaler.scale[dataset.targets],
        naive=seasonal_naive_error(train, dataset.season()),
    )


def forecast_function(config: Config) -> tuple[Callable[..., jax.Array], tuple[str, ...]]:
    """(function(params, *inputs) -> y [B,P,C], names of the inputs): what is lowered."""
    model: Any = make_model(config)
    if config.model.router != "time":
        return lambda params, x: model.apply({"params": params}, x).y, ("x",)
    return lambda params, x, mark: model.apply({"params": params}, x, mark).y, ("x", "mark")
