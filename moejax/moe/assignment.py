"""What a router decided: pytrees that routing makes, capacity thins out and dispatch carries out.

Letters: k experts chosen by a token, M outputs of a router (E experts, then free ones), G groups
of tokens, S tokens of a group, N slots, C places of an expert for a group of tokens.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

# Added to sums of scores before dividing: far below all that matter (the published routers add
# 1e-20), yet with a square that float32 holds, so that gradients stay finite too.
TINY_SUM = 1e-18


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["index", "weight", "keep", "position", "logits", "scores", "valid"],
    meta_fields=["num_experts", "capacity", "num_groups", "order"],
)
@dataclass(frozen=True)
class Routing:
    """What the router said about T tokens.

    index [T, k] int32, chosen outputs (from `num_experts` on they are free experts);
    weight [T, k] float32, what each choice counts for; keep [T, k] bool, False where the choice
    is not served: padding, dropped over capacity, not wanted. `kept_weight` is 0 there.
    position [T, k] int32, place in the expert's queue, -1 without one; None before
    `apply_capacity`. logits, scores [T, M] float32. valid [T] bool: neither padding nor with a
    logit that is NaN. Static: `num_experts` E, `capacity` C (None: nothing was dropped for want
    of places), `num_groups`, the groups of consecutive tokens that have places of their own, and
    `order`, that of the queues where the router has filled `position` before any capacity.
    """

    index: jax.Array
    weight: jax.Array
    keep: jax.Array
    logits: jax.Array
    scores: jax.Array
    valid: jax.Array
    num_experts: int
    position: jax.Array | None = None
    capacity: int | None = None
    num_groups: int = 1
    order: str | None = None

    @property
    def kept_weight(self) -> jax.Array:
        """[T, k] weights, 0 where a choice is not served."""
        return jnp.where(self.keep, self.weight, 0.0)

    @property
    def served(self) -> jax.Array:
        """[T, k] bool: a real expert works on this choice."""
        if self.logits.shape[-1] == self.num_experts:
            return self.keep
        return self.keep & (self.index < self.num_experts)

    @property
    def probabilities(self) -> jax.Array:
        """[T, M] scores scaled to a sum of 1 a token."""
        scores = jnp.maximum(self.scores, 0.0)
        return scores / (jnp.sum(scores, axis=-1, keepdims=True) + TINY_SUM)

    def counts(self, chosen_Tk: jax.Array) -> jax.Array:
        """[M] int32: how often each output is among these choices ([T, k] bool)."""
        flat = jnp.where(chosen_Tk, self.index, self.logits.shape[-1]).reshape(-1)
        return jnp.bincount(flat, length=self.logits.shape[-1] + 1)[:-1].astype(jnp.int32)


@partial(jax.tree_util.register_dataclass, data_fields=["dispatch", "combine"], meta_fields=[])
@dataclass(frozen=True)
class SoftRouting:
    """Soft MoE: every slot is a mean of tokens, every token a mean of slots.

    dispatch [G, S, N] sums to 1 over the S tokens of a group, combine [G, S, N] over the N slots
    (expert-major); rows of padding are 0.
    """

    dispatch: jax.Array
    combine: jax.Array
