"""Recipes of Chronos: dense models, mixtures of experts, and fine-tuning on one's own series."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from moejax.forecasting.chronos.forecaster import ChronosForecaster, make_pipeline
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config
from train import chronos_task
from train.chronos_data.config import WindowConfig
from train.chronos_data.windows import WindowSet, load_windows
from train.chronos_start import load_model, model_config
from train.chronos_task import ChronosTraining
from train.config import Config, LoopConfig
from train.forecasts.evaluate import final_scores, scores_in_a_line
from train.optim import OptimConfig
from train.task import Task

WATCHED = "loss"
FORECASTER = "chronos"


@dataclass(frozen=True, kw_only=True)
class ChronosRun(Config):
    """A run of Chronos on windows of series."""

    data: WindowConfig = field(default_factory=WindowConfig)
    training: ChronosTraining = field(default_factory=ChronosTraining)

    def __post_init__(self) -> None:
        sizes = {"context_length": "context", "prediction_length": "horizon"}
        for ours, theirs in sizes.items():
            found, wanted = getattr(self.data, theirs), getattr(self.model.chronos, ours)
            if found != wanted and not self.training.start:
                raise ValueError(
                    f"data.{theirs} is {found}, but model.chronos.{ours} is {wanted}; they must be"
                    " equal"
                )


def chronos_debug() -> ChronosRun:
    """A tiny mixture of experts on embedded temperatures and drawn series.

    moejax train chronos_debug
    """
    return ChronosRun(
        recipe="chronos_debug",
        model=_model(d_model=32, num_layers=1, context=96, horizon=16, n_tokens=128, experts=3),
        data=WindowConfig(
            sources=("temperatures",),
            kernel_series=4,
            kernel_steps=128,
            context=96,
            horizon=16,
            min_past=24,
            rows=256,
            val_rows=16,
            score=("temperatures",),
            windows=2,
            samples=8,
        ),
        optim=_optim(learning_rate=3e-3),
        loop=_loop(epochs=2, steps_per_epoch=20, batch_size=8),
    )


def chronos_tiny() -> ChronosRun:
    """A small dense Chronos on ETT, weather, temperatures and drawn series.

    moejax train chronos_tiny
    """
    model = _model(d_model=64, num_layers=2, context=128, horizon=64, n_tokens=2048)
    return ChronosRun(
        recipe="chronos_tiny",
        model=model,
        data=WindowConfig(
            context=128,
            weights=(0.2, 0.15, 0.05, 0.35, 0.25),
            kernel_share=0.02,
            seasonal_share=0.5,
            kernel_steps=512,
            min_past=112,
            rows=1 << 17,
            windows=20,
            samples=50,
        ),
        training=ChronosTraining(period=24),
        optim=_optim(learning_rate=3e-3, position_rate=30.0),
        loop=_loop(epochs=10, steps_per_epoch=1000, batch_size=16),
    )


def chronos_moe_tiny() -> ChronosRun:
    """chronos_tiny with four experts behind it, two a series; 22 minutes.

    moejax train chronos_moe_tiny
    The other architecture: --set model.chronos.moe_architecture=expert_only
    """
    base = chronos_tiny()
    chronos = replace(
        base.model.chronos,
        use_moe=True,
        num_experts=4,
        router_hidden_dim=64,
        expert_dispatch="indexed",  # two thirds of the time of "dense"
    )
    return replace(base, recipe="chronos_moe_tiny", model=replace(base.model, chronos=chronos))


def chronos_finetune() -> ChronosRun:
    """A trained or published Chronos, trained on with your own CSV.

    moejax train chronos_finetune --set training.start=FOLDER data.csv=FILE
    FOLDER: a checkpoint's, or the workdir of a run; context and horizon are its own.
    """
    base = chronos_tiny()
    return replace(
        base,
        recipe="chronos_finetune",
        data=replace(
            base.data, kernel_share=0.0, seasonal_share=0.0, mixup=1, min_past=60, rows=4096
        ),
        training=ChronosTraining(),
        optim=_optim(learning_rate=1e-4),
        loop=_loop(epochs=5, steps_per_epoch=40, batch_size=16),
    )


RECIPES = (chronos_debug, chronos_tiny, chronos_moe_tiny, chronos_finetune)


def _model(
    *, d_model: int, num_layers: int, context: int, horizon: int, n_tokens: int, experts: int = 0
) -> ChronosModelConfig:
    return ChronosModelConfig(
        t5=T5Config(
            vocab_size=n_tokens,
            d_model=d_model,
            d_kv=32,
            d_ff=4 * d_model,
            num_layers=num_layers,
            num_decoder_layers=num_layers,
            num_heads=4,
            # a distance has a row of its own as far as contexts reach
            relative_attention_num_buckets=512,
            relative_attention_max_distance=512,
            dropout_rate=0.0,  # what is small and short of time does not overfit
            initializer_factor=0.3,
        ),
        chronos=ChronosConfig(
            n_tokens=n_tokens,
            # narrow, so that bins are finer than what a day brings
            tokenizer_kwargs={"low_limit": -3.0, "high_limit": 5.0},
            context_length=context,
            prediction_length=horizon,
            top_k=0,  # of so fine bins the 50 likeliest are but a part of a forecast
            use_moe=experts > 0,
            num_experts=max(experts, 2),
            router_hidden_dim=d_model,
        ),
    )


def _optim(*, learning_rate: float, position_rate: float = 1.0) -> OptimConfig:
    return OptimConfig(
        name="adamw",
        learning_rate=learning_rate,
        schedule="linear",
        weight_decay=0.0,
        clip_norm=1.0,
        position_rate=position_rate,
    )


def _loop(*, epochs: int, steps_per_epoch: int, batch_size: int) -> LoopConfig:
    return LoopConfig(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=min(20, steps_per_epoch),
        batch_size=batch_size,
        eval_batch_size=32,
        patience=epochs,
    )


def load(config: ChronosRun) -> WindowSet:
    """The windows of a config, of the sizes of the model that training starts with."""
    if config.recipe == chronos_finetune.__name__ and not config.training.start:
        raise ValueError(
            "training.start is empty; name the model to begin with: --set training.start=FOLDER,"
            " a checkpoint's folder or a workdir of `moejax train`"
        )
    return load_windows(_sized(config).data)


def resolve(config: ChronosRun, dataset: WindowSet) -> ChronosRun:
    """The config with the model that training starts with, where it names one."""
    return _sized(config)


def misfit(config: ChronosRun, dataset: WindowSet) -> None:
    """Every set of windows fits every model."""


def result(final: dict[str, Any]) -> str:
    """A finished run in a line."""
    nats = f"test {final['test_loss']:.4f} nats a token"
    return "; ".join(filter(None, [nats, scores_in_a_line(final)]))


def make_model(config: ChronosRun) -> Any:
    """The Linen module."""
    return config.model.module()


def make_forecaster(config: ChronosRun, params: Any) -> ChronosForecaster:
    """A run's parameters, ready to forecast."""
    return ChronosForecaster(make_pipeline(config.model, {"params": params["params"]}))


def make_task(config: ChronosRun, dataset: WindowSet) -> Task:
    """The config's model on its windows; its forecasts are scored at the end."""
    start = None
    if config.training.start:
        start = partial(_started_variables, config.training.start)
    return chronos_task.make_task(
        config.model,
        config.training,
        dataset,
        config.data,
        start=start,
        closing=partial(_closing, config, dataset),
    )


def _started_variables(source: str) -> Any:
    return load_model(source)[1]


def _closing(config: ChronosRun, dataset: WindowSet, params: Any) -> dict[str, Any]:
    return final_scores(make_forecaster(config, params), FORECASTER, dataset, config.data)


def _sized(config: ChronosRun) -> ChronosRun:
    if not config.training.start:
        return config
    model = model_config(config.training.start)
    sizes = {"context": model.chronos.context_length, "horizon": model.chronos.prediction_length}
    least = min(config.data.min_past, sizes["context"])
    return replace(config, model=model, data=replace(config.data, min_past=least, **sizes))
