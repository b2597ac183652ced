"""Recipes of MOIRAI-MoE: pre-training on a mixture of series, fine-tuning on one's own."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from moejax.forecasting.moirai.forecaster import MoiraiMoEForecaster
from moejax.forecasting.series import Forecaster
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig
from moejax.moe.layer import LossWeights
from train import moirai_task
from train.config import Config, LoopConfig
from train.forecasts.evaluate import final_scores, scores_in_a_line
from train.lm_task import model_variables
from train.moirai_centroids import second_stage
from train.moirai_data.config import MixtureConfig
from train.moirai_data.rows import PackedSeries, pack_series
from train.moirai_start import load_model, model_config
from train.moirai_task import MoiraiTraining
from train.optim import OptimConfig
from train.task import Task

WATCHED = "nll"
FORECASTER = "moirai_moe"


@dataclass(frozen=True, kw_only=True)
class MoiraiRun(Config):
    """A run of MOIRAI-MoE on a mixture of series."""

    data: MixtureConfig = field(default_factory=MixtureConfig)
    training: MoiraiTraining = field(default_factory=MoiraiTraining)


def moirai_debug() -> MoiraiRun:
    """A tiny MOIRAI-MoE with 4 experts on embedded temperatures and a generator.

    moejax train moirai_debug
    """
    return MoiraiRun(
        recipe="moirai_debug",
        model=_model(d_model=64, num_layers=1, num_experts=4, d_ff=32),
        data=MixtureConfig(
            sources=("temperatures", "synthetic"),
            row_tokens=24,
            max_tokens=16,
            min_tokens=4,
            rows=256,
            val_rows=16,
            context=192,
            horizon=48,
            synthetic_series=32,
            synthetic_steps=512,
            score=("temperatures",),
            windows=3,
            samples=20,
        ),
        optim=_optim(learning_rate=3e-3, warmup_steps=5),
        loop=_loop(epochs=2, steps_per_epoch=20, batch_size=8),
    )


def moirai_pretrain() -> MoiraiRun:
    """A small MOIRAI-MoE on ETT, weather, temperatures and a generator of series.

    moejax train moirai_pretrain
    21 minutes of CPU time. 96 steps of the held-out tail, CRPS and MASE: ETTh1 0.252 and 0.934
    (seasonal naive 0.338 and 1.033), Weather 0.0517 and 0.462 (0.0757 and 0.679).
    """
    return MoiraiRun(
        recipe="moirai_pretrain",
        model=_model(d_model=128, num_layers=3, num_experts=8, d_ff=256),
        data=MixtureConfig(
            weights=(0.1, 0.1, 0.1, 0.35, 0.05, 0.3), rows=32768, windows=20, samples=50
        ),
        optim=_optim(learning_rate=2e-3, warmup_steps=200),
        loop=_loop(epochs=28),
    )


def moirai_dense() -> MoiraiRun:
    """The first stage of training by centroids: moirai_pretrain's model with one expert a layer.

    moejax train moirai_dense
    """
    base = moirai_pretrain()
    model = replace(base.model, num_experts=1, top_k=1, losses=LossWeights(load_balance=0.0))
    return replace(base, recipe="moirai_dense", model=model, loop=_loop(epochs=4))


def moirai_kmeans() -> MoiraiRun:
    """The second stage: 32 experts, chosen as in the published models by centroids of k-means.

    moejax train moirai_kmeans --set training.centroids=runs/moirai_dense
    """
    base = moirai_pretrain()
    return replace(
        base,
        recipe="moirai_kmeans",
        model=replace(base.model, routing="farthest", num_experts=32),
        training=MoiraiTraining(centroids="runs/moirai_dense"),
    )


def moirai_finetune() -> MoiraiRun:
    """A trained or published MOIRAI-MoE, trained on with your own CSV.

    moejax train moirai_finetune --set training.start=FOLDER data.csv=FILE
    FOLDER: a checkpoint's, or the workdir of a run. In place of a CSV, data.sources=etth1 (or
    others) with data.score=etth1 trains on with what a recipe knows.
    """
    base = moirai_pretrain()
    return MoiraiRun(
        recipe="moirai_finetune",
        model=base.model,
        data=replace(base.data, sources=("temperatures",), weights=(), rows=4096),
        optim=_optim(learning_rate=1e-4, warmup_steps=10),
        loop=_loop(epochs=5, steps_per_epoch=40, batch_size=16),
    )


RECIPES = (moirai_debug, moirai_pretrain, moirai_dense, moirai_kmeans, moirai_finetune)


def _model(*, d_model: int, num_layers: int, num_experts: int, d_ff: int) -> MoiraiMoEConfig:
    return MoiraiMoEConfig(
        d_model=d_model,
        num_layers=num_layers,
        d_ff=d_ff,
        routing="learned",
        num_experts=num_experts,
        dropout=0.1,
        losses=LossWeights(load_balance=0.01, z=1e-3),
    )


def _optim(*, learning_rate: float, warmup_steps: int) -> OptimConfig:
    return OptimConfig(
        name="adamw",
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_steps=warmup_steps,
        final_share=0.02,
        weight_decay=0.1,
        decay_all=False,
        clip_norm=1.0,
        b2=0.98,
    )


def _loop(*, epochs: int, steps_per_epoch: int = 200, batch_size: int = 16) -> LoopConfig:
    return LoopConfig(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=min(20, steps_per_epoch),
        batch_size=batch_size,
        eval_batch_size=32,
        patience=epochs,
    )


def load(config: MoiraiRun) -> PackedSeries:
    """The mixture of a config, packed for its model, or for the one that training starts with."""
    if config.recipe == moirai_finetune.__name__ and not config.training.start:
        raise ValueError(
            "training.start is empty; name the model to begin with: --set training.start=FOLDER,"
            " a checkpoint's folder or a workdir of `moejax train`"
        )
    try:
        sizes = _started(config).patch_sizes
    except ValueError:
        sizes = config.model.patch_sizes  # `resolve` says why; a saved config has them already
    return pack_series(config.data, sizes)


def resolve(config: MoiraiRun, dataset: PackedSeries) -> MoiraiRun:
    """The config with the model that training starts with, where it names one."""
    return replace(config, model=_started(config))


def misfit(config: MoiraiRun, dataset: PackedSeries) -> None:
    """Every mixture fits every model."""


def result(final: dict[str, Any]) -> str:
    """A finished run in a line."""
    return "; ".join(filter(None, [f"test nll {final['test_nll']:.4f}", scores_in_a_line(final)]))


def make_forecaster(config: MoiraiRun, params: Any) -> Forecaster:
    """A run's parameters, ready to forecast."""
    return MoiraiMoEForecaster(
        config.model,
        model_variables(params),
        context_length=config.data.context,
        patch_size=config.model.patch_sizes[0],
    )


def make_model(config: MoiraiRun) -> MoiraiMoE:
    """The Linen module; variables by `train.lm_task.model_variables` of a run's parameters."""
    return MoiraiMoE(config.model)


def make_task(config: MoiraiRun, dataset: PackedSeries) -> Task:
    """The config's model on its mixture; its forecasts are scored at the end."""
    training = config.training
    start = None
    if training.start:
        start = partial(_started_variables, training.start)
    elif training.centroids:
        start = partial(_second_stage, config, dataset)
    return moirai_task.make_task(
        config.model,
        training,
        dataset,
        start=start,
        closing=partial(_closing, config, dataset),
    )


def _closing(config: MoiraiRun, dataset: PackedSeries, params: Any) -> dict[str, Any]:
    return final_scores(make_forecaster(config, params), FORECASTER, dataset, config.data)


def _started_variables(source: str) -> Any:
    return load_model(source)[1]


def _second_stage(config: MoiraiRun, dataset: PackedSeries) -> Any:
    first = load_model(config.training.centroids)
    return second_stage(config.model, first, dataset, config.loop.seed)


def _started(config: MoiraiRun) -> MoiraiMoEConfig:
    """The model, with sizes of the one that training starts with; the recipe's habits stay."""
    own = config.model
    if not config.training.start:
        return own
    found = model_config(config.training.start)
    habits = ("dropout", "attention_dropout", "dtype", "dispatch", "losses")
    return replace(found, **{name: getattr(own, name) for name in habits})
