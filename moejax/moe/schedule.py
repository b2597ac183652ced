"""What changes in the course of training, as functions of a traced step, so compiled once.

A step is an int32 array, the optimiser steps done so far, or None for the end of training, when
every ramp is up.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Lengths of the ramps in optimiser steps; 0 is no ramp.

    `warmup_steps`: the routed experts' part in the output grows from 0 to 1. `capacity_ramp_steps`:
    the places of an expert grow from the capacity's `minimum` to the full number. `aux_ramp_steps`:
    the weight of the balance losses grows from 0 to `aux_scale` times their own. `reset_steps`:
    the training loop resets dead experts each time so many are done (reset.py); 0 is never.
    """

    warmup_steps: int = 0
    capacity_ramp_steps: int = 0
    aux_ramp_steps: int = 0
    aux_scale: float = 1.0
    reset_steps: int = 0

    def __post_init__(self):
        for name in ("warmup_steps", "capacity_ramp_steps", "aux_ramp_steps", "reset_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} is {value!r}; it must be a whole number >= 0")
        if not 0 <= self.aux_scale < float("inf"):
            raise ValueError(f"aux_scale is {self.aux_scale}; it must be a number >= 0")

    def warmup(self, step: jax.Array | None) -> jax.Array | float:
        """g(step): the routed experts' part in the output, 0 to 1."""
        return _ramp(step, self.warmup_steps)

    def capacity(self, step: jax.Array | None) -> jax.Array | float:
        """The share of the way from the fewest places of an expert to all of them, 0 to 1."""
        return _ramp(step, self.capacity_ramp_steps)

    def aux(self, step: jax.Array | None) -> jax.Array | float:
        """What the balance losses are multiplied by, 0 to `aux_scale`."""
        return self.aux_scale * _ramp(step, self.aux_ramp_steps)


def _ramp(step: jax.Array | None, steps: int) -> jax.Array | float:
    """0 at step 0, 1 from `steps` on."""
    if step is None or steps == 0:
        return 1.0
    return jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
