"""Recipes of the language model with experts, and of dense ones beside it."""

from dataclasses import dataclass, field, replace
from typing import Any

from moejax.interop.tokenizer import ByteTokenizer
from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import CausalLM, LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import LossWeights, MoEConfig
from train import lm_task
from train.config import Config, LoopConfig
from train.lm_task import LMTraining, MeshConfig
from train.optim import OptimConfig
from train.packing import PackedText, pack
from train.task import Task
from train.text import TextConfig, load_corpus

WATCHED = "bits_per_byte"


@dataclass(frozen=True, kw_only=True)
class LMRun(Config):
    """A run of a language model on text."""

    data: TextConfig = field(default_factory=TextConfig)
    training: LMTraining = field(default_factory=LMTraining)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        if self.loop.batch_size // self.loop.accumulate % self.mesh.data:
            raise ValueError(
                f"loop.batch_size is {self.loop.batch_size} in {self.loop.accumulate} pieces;"
                f" mesh.data, which is {self.mesh.data}, must divide each"
            )


def lm_debug() -> LMRun:
    """A tiny language model with 4 experts on the standard library's source code.

    moejax train lm_debug
    25 s of CPU time. Validation 3.57 bits per byte.
    """
    model = _model(d_model=64, num_layers=2, num_experts=4, d_ff=64)
    return LMRun(
        recipe="lm_debug",
        model=model,
        data=TextConfig(seq_len=128, val_share=0.01, test_share=0.01),
        optim=_optim(learning_rate=3e-3, warmup_steps=10),
        loop=_loop(epochs=3, steps_per_epoch=50, batch_size=8),
    )


def lm_small() -> LMRun:
    """A language model of 10.6M parameters, 2.8M of them active, on the library's source code.

    moejax train lm_small
    37 minutes of CPU time, 19 minutes of two free cores. Validation 1.557 bits per byte on Python
    3.12.1; 1.9 is passed before step 750, after 18 minutes of CPU time.
    """
    return LMRun(
        recipe="lm_small",
        model=_model(d_model=256, num_layers=4, num_experts=12, d_ff=256),
        optim=_optim(learning_rate=1e-3, warmup_steps=100),
        loop=_loop(epochs=6, steps_per_epoch=250, batch_size=8),
    )


def lm_small_dense() -> LMRun:
    """lm_small without experts: MLPs as wide as the experts that a token of lm_small uses.

    moejax train lm_small_dense
    Its learning rate is the one that suits it better, 1.5e-3 of 5e-4, 1e-3 and 1.5e-3.
    """
    config = lm_small()
    assert config.model.moe is not None
    width = config.model.d_ff * config.model.moe.routing.top_k
    model = replace(config.model, moe=None, d_ff=width)
    optim = replace(config.optim, learning_rate=1.5e-3)
    return replace(config, recipe="lm_small_dense", model=model, optim=optim)


def lm_text() -> LMRun:
    """lm_small on your own text: a file, a pattern, or JSON lines.

    moejax train lm_text --set data.text=FILE
    """
    return replace(lm_small(), recipe="lm_text")


RECIPES = (lm_debug, lm_small, lm_small_dense, lm_text)


def _model(*, d_model: int, num_layers: int, num_experts: int, d_ff: int) -> LMConfig:
    """A model for bytes with 2 experts a token in every layer, in as few words as it takes."""
    moe = MoEConfig(
        d_model=d_model,
        d_ff=d_ff,
        routing=RoutingConfig(num_experts=num_experts, top_k=2),
        capacity=None,
        losses=LossWeights(load_balance=0.01, z=1e-3),
    )
    heads = max(d_model // 64, 2)
    return LMConfig(
        vocab_size=ByteTokenizer.vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        d_ff=d_ff,
        attention=AttentionConfig(
            num_heads=heads, num_kv_heads=heads, head_dim=d_model // heads, rope=RopeConfig()
        ),
        moe=moe,
    )


def _optim(*, learning_rate: float, warmup_steps: int) -> OptimConfig:
    return OptimConfig(
        name="adamw",
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_steps=warmup_steps,
        final_share=0.05,
        weight_decay=0.1,
        decay_all=False,
        clip_norm=1.0,
        b2=0.95,
    )


def _loop(*, epochs: int, steps_per_epoch: int, batch_size: int) -> LoopConfig:
    return LoopConfig(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=min(25, steps_per_epoch),
        batch_size=batch_size,
        eval_batch_size=32,
        patience=epochs,
    )


def load(config: LMRun) -> PackedText:
    """The text of a config, packed."""
    return pack(load_corpus(config.data), config.data)


def resolve(config: LMRun, dataset: PackedText) -> LMRun:
    """The config as it is: the text decides no size."""
    return config


def misfit(config: LMRun, dataset: PackedText) -> None:
    """Every text fits every model of bytes."""


def result(final: dict[str, Any]) -> str:
    """A finished run in a line."""
    return (
        f"test {final['test_bits_per_byte']:.4f} bits per byte, next byte right "
        f"{final['test_accuracy']:.1%}, over all {final['test_windows']} rows"
    )


def make_model(config: LMRun) -> CausalLM:
    """The Linen module; variables by `train.lm_task.model_variables` of a run's parameters."""
    return CausalLM(config.model)


def make_task(config: LMRun, dataset: PackedText) -> Task:
    """The config's model on its text."""
    if config.model.vocab_size < ByteTokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size is {config.model.vocab_size}; bytes and their marks need"
            f" {ByteTokenizer.vocab_size}"
        )
    return lm_task.make_task(config.model, config.training, dataset, config.mesh.make())
