"""Optimisers and learning-rate schedules, as optax chains."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

Name = Literal["adam", "adamw"]
Schedule = Literal["type1", "cosine", "linear", "constant"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Which optimiser, at which rate.

    `schedule`: type1 = the first rate for two epochs, then half of the last one every epoch;
    cosine = from 0 up to the rate in `warmup_steps`, then down to `final_share` of it at the last
    epoch; linear = down to 0 there; constant. `clip_norm` 0 = no clipping. `decay_all` False:
    parameters of fewer than two axes (scales, biases) do not decay. `position_rate`: tables of
    relative positions learn so many times as fast.
    """

    name: Name = "adam"
    learning_rate: float = 1e-3
    schedule: Schedule = "type1"
    warmup_steps: int = 0
    final_share: float = 0.0
    weight_decay: float = 0.0
    decay_all: bool = True
    clip_norm: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    position_rate: float = 1.0

    def __post_init__(self) -> None:
        for field, choices in (("name", Name), ("schedule", Schedule)):
            if getattr(self, field) not in get_args(choices):
                raise ValueError(
                    f"optim.{field} is {getattr(self, field)!r}; allowed: {get_args(choices)}"
                )
        for field in ("learning_rate", "position_rate"):
            if not getattr(self, field) > 0:
                raise ValueError(f"optim.{field} is {getattr(self, field)}; it must be above 0")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("optim.weight_decay and optim.clip_norm must not be negative")
        if not (self.warmup_steps >= 0 and 0 <= self.final_share <= 1):
            raise ValueError(
                f"optim.warmup_steps is {self.warmup_steps} and optim.final_share"
                f" {self.final_share}; they must be >= 0, and final_share at most 1"
            )
        if (self.warmup_steps or self.final_share) and self.schedule != "cosine":
            raise ValueError(
                f"optim.warmup_steps and optim.final_share belong to the schedule 'cosine';"
                f" optim.schedule is {self.schedule!r}"
            )
        if self.weight_decay and self.name != "adamw":
            raise ValueError(
                f"optim.weight_decay is {self.weight_decay} but optim.name is 'adam', which "
                "ignores it; use --set optim.name=adamw"
            )


def learning_rate(config: OptimConfig, *, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates made."""
    if config.schedule == "type1":

        def type1(count: Any) -> jax.Array:
            halvings = jnp.maximum(jnp.asarray(count) // steps_per_epoch - 1, 0)
            return config.learning_rate * 0.5 ** halvings.astype(jnp.float32)

        return type1
    if config.schedule == "cosine":
        return _warmup_cosine(config, steps_per_epoch * epochs)
    if config.schedule == "linear":
        return optax.linear_schedule(config.learning_rate, 0.0, steps_per_epoch * epochs)
    return optax.constant_schedule(config.learning_rate)


def _warmup_cosine(config: OptimConfig, total: int) -> optax.Schedule:
    warmup = min(config.warmup_steps, total - 1)
    decay = optax.cosine_decay_schedule(
        config.learning_rate, total - warmup, alpha=config.final_share
    )
    if not warmup:
        return decay
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _position_tables(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "relative_bias" in jax.tree_util.keystr(path[-1:]), params
    )


def make_optimizer(
    config: OptimConfig, *, steps_per_epoch: int, epochs: int
) -> optax.GradientTransformation:
    """Clipping (if any), then Adam or AdamW at the scheduled rate."""
    rate = learning_rate(config, steps_per_epoch=steps_per_epoch, epochs=epochs)
    moments = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    steps = [moments, optax.scale_by_learning_rate(rate)]
    if config.name == "adamw":
        mask = None if config.decay_all else _matrices
        steps.insert(1, optax.add_decayed_weights(config.weight_decay, mask))
    if config.position_rate != 1:
        faster = optax.scale(config.position_rate)
        steps.append(optax.masked(faster, _position_tables))
    if config.clip_norm:
        steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*steps)
