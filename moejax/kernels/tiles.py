"""What the router's kernels do to a tile: reads and writes, scores, order as integers.

Letters as in plan.py: B tokens, L columns, M outputs, K slots of which k count.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moejax.kernels.plan import RouterPlan
from moejax.moe.assignment import TINY_SUM
from moejax.moe.routing import LARGEST_LOGIT

# Below the key of every number, -inf included.
NO_KEY = int(np.iinfo(np.int32).min)


class Tile:
    """B tokens: rows from `start` of a program's blocks `refs`, whose row 0 is token `first`."""

    def __init__(self, plan: RouterPlan, refs, start, first):
        self.plan = plan
        self.refs = refs
        self.rows = pl.ds(start, plan.block)
        self.live_B = first + start + iota((plan.block,), 0) < plan.group_tokens
        column_BL = iota((plan.block, plan.columns), 1)
        self.live_BL = self.live_B[:, None] & plan.is_output(column_BL)
        if plan.padded_groups:
            row_BL = start + iota(column_BL.shape, 0)
            self.wide = (row_BL, plan.output_of(column_BL))
        else:
            self.wide = (self.rows, slice(None))

    def logits(self) -> tuple[jax.Array, jax.Array]:
        """(float32 logits [B, L], free of NaN and clipped; whether a token's had no NaN [B])."""
        x_BL = self.load_wide("logits")
        clean_B = jnp.max(jnp.where(x_BL != x_BL, 1, 0), axis=1) == 0
        x_BL = jnp.where(clean_B[:, None], x_BL, 0.0)
        return jnp.minimum(jnp.maximum(x_BL, -LARGEST_LOGIT), LARGEST_LOGIT), clean_B

    def unmasked(self) -> jax.Array:
        """[B] bool: tokens that exist and are no padding."""
        if "mask" not in self.refs:
            return self.live_B
        mask = plgpu.load(self.refs["mask"].at[self.rows], mask=self.live_B, other=0)
        return self.live_B & (mask != 0)

    def load_wide(self, name: str) -> jax.Array:
        """[B, L] float32 of a block [rows, M], 0 beyond its end."""
        ref = self.refs[name].at[self.wide]
        return plgpu.load(ref, mask=self.live_BL, other=0).astype(jnp.float32)

    def store_wide(self, name: str, value_BL: jax.Array):
        """Write [B, L] to a block [rows, M]."""
        ref = self.refs[name]
        plgpu.store(ref.at[self.wide], value_BL.astype(ref.dtype), mask=self.live_BL)

    def load_narrow(self, name: str) -> jax.Array:
        """[B, K] of a block [rows, k], 0 beyond its end."""
        ref = self.refs[name].at[self.rows, :]
        return plgpu.load(ref, mask=self._narrow_mask(), other=0)

    def store_narrow(self, name: str, value_BK: jax.Array):
        """Write [B, K] to a block [rows, k]."""
        plgpu.store(self.refs[name].at[self.rows, :], value_BK, mask=self._narrow_mask())

    def store_row(self, name: str, value_B: jax.Array):
        """Write [B] to a block [rows]."""
        plgpu.store(self.refs[name].at[self.rows], value_B, mask=self.live_B)

    def _narrow_mask(self):
        inside_BK = iota((self.plan.block, self.plan.slots), 1) < self.plan.top_k
        return self.live_B[:, None] & inside_BK


def score_tile(plan: RouterPlan, x_BL: jax.Array, column_BL: jax.Array) -> jax.Array:
    """Scores of cleaned logits; padding columns get what must not be read."""
    if plan.score == "identity":
        return x_BL
    if plan.score == "sigmoid":
        return jax.nn.sigmoid(x_BL)
    x_BL = jnp.where(plan.is_output(column_BL), x_BL, -jnp.inf)
    exp_BL = jnp.exp(x_BL - jnp.max(x_BL, axis=1)[:, None])
    return exp_BL * (1.0 / jnp.sum(exp_BL, axis=1))[:, None]


def finish_weights(plan: RouterPlan, weight_BK: jax.Array) -> jax.Array:
    """Normalised and scaled weights of the chosen scores, whose padding slots are 0."""
    if plan.normalise and plan.score == "identity":
        inside_BK = iota(weight_BK.shape, 1) < plan.top_k
        weight_BK = jnp.where(inside_BK, weight_BK, -jnp.inf)
        weight_BK = jnp.exp(weight_BK - jnp.max(weight_BK, axis=1)[:, None])
        weight_BK = weight_BK / jnp.sum(weight_BK, axis=1)[:, None]
    elif plan.normalise:
        weight_BK = weight_BK / (jnp.sum(weight_BK, axis=1)[:, None] + TINY_SUM)
    return weight_BK if plan.scale == 1.0 else weight_BK * plan.scale


def sort_key(x: jax.Array) -> jax.Array:
    """int32 that order as `lax.top_k` orders float32: -inf < -0.0 < 0.0 < inf < NaN."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def key_value(key: jax.Array) -> jax.Array:
    """The float32 that has this key."""
    bits = key ^ ((key >> 31) & np.int32(0x7FFFFFFF))
    return lax.bitcast_convert_type(bits, jnp.float32)


def take_best(key_BL: jax.Array, column_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(largest key of each row, its column), the lowest of equals: two integer reductions."""
    best_B = jnp.max(key_BL, axis=1)
    none = np.int32(key_BL.shape[1] - 1)
    return best_B, jnp.min(jnp.where(key_BL == best_B[:, None], column_BL, none), axis=1)


def iota(shape: tuple[int, ...], axis: int) -> jax.Array:
    """int32 positions along an axis."""
    return lax.broadcasted_iota(jnp.int32, shape, axis)
