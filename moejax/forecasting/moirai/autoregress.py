"""The sampling loop of MOIRAI-MoE: patch after patch, all samples of a series side by side.

There is no cache. What is drawn counts in the scaler's statistics, which move at every step and
for every sample, and with them the tokens of the whole past. So a step runs the whole model, but
only on tokens that the next patch can see. It reads one token of each target.

B series, S samples, rows S * B (sample by sample), C targets, M patches of the forecast, P cells.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moejax.distributions import Distribution
from moejax.forecasting.moirai.arrange import leading
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, Tokens

# (distributions of cells [S * B, C, P], source of a chunk, number of the step) -> values [S * B, C,
# P]. `source` is a pytree whose leaves have S as their first axis.
Draw = Callable[[Distribution, Any, Any], jax.Array]
# A loop's tokens may be so many times as many as its first step needs; then another loop begins.
GROWTH = 1.25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Static sizes of a roll-out.

    `known`: tokens in front of the forecast's. `past`: patches of past of each target. `samples`
    are run in `chunks` equal parts, one after the other.
    """

    targets: int
    past: int
    known: int
    patches: int
    samples: int
    chunks: int = 1

    def loops(self) -> list[tuple[int, int]]:
        """(first step, step behind the last) of every loop; all steps but the first one, step 0."""
        found, start = [], 1
        while start < self.patches:
            most = GROWTH * (self.known + start * self.targets) - self.known
            end = min(max(int(most // self.targets), start) + 1, self.patches)
            found.append((start, end))
            start = end
        return found


def sample(distribution: Distribution, keys_SB: jax.Array, step: Any) -> jax.Array:
    """Each row draws with a key of its own, so that it depends on no other row."""
    keys_R = jax.vmap(jax.random.fold_in, (0, None))(keys_SB.reshape(-1), step)
    return jax.vmap(lambda one, key: one.sample(key))(distribution, keys_R)


def mean(distribution: Distribution, source: Any, step: Any) -> jax.Array:
    """The mean in the place of a draw."""
    del source, step
    return distribution.mean()


def given(distribution: Distribution, values_SNBCP: jax.Array, step: Any) -> jax.Array:
    """Values [S, steps, B, C, P] in the place of the draws."""
    del distribution
    values_SBCP = lax.dynamic_index_in_dim(values_SNBCP, step, axis=1, keepdims=False)
    return values_SBCP.reshape(-1, *values_SBCP.shape[2:])


@partial(jax.jit, static_argnames=("config", "plan", "draw", "record"))
def roll_out(
    config: MoiraiMoEConfig,
    plan: Plan,
    variables: Any,
    tokens: Tokens,
    source: Any,
    *,
    draw: Draw = sample,
    record: bool = False,
) -> tuple[jax.Array, list[Distribution]]:
    """Patches of the forecast [S, B, M, C, P], zeros beyond the patch size.

    `tokens` are in the order of arrange.py. With `record` also the distributions that were drawn
    from: that of the first step [B, C, P], then one [steps, S * B, C, P] for each loop.
    """
    run = _Run(config, plan, variables, tokens, draw, record)
    first = run.first()
    parts = jax.tree.map(lambda leaf: leaf.reshape(plan.chunks, -1, *leaf.shape[1:]), source)
    if plan.chunks == 1:
        values, recorded = run.chunk(first, jax.tree.map(lambda leaf: leaf[0], parts))
    else:
        values, recorded = lax.map(partial(run.chunk, first), parts)
        values = values.reshape(-1, *values.shape[2:])
        recorded = jax.tree.map(_join_chunks, recorded)
    return values, [first, *recorded] if record else []


def _join_chunks(leaf: jax.Array) -> jax.Array:
    """[chunks, steps, rows, ...] -> [steps, chunks * rows, ...]."""
    leaf = jnp.moveaxis(leaf, 0, 1)
    return leaf.reshape(len(leaf), -1, *leaf.shape[3:])


@dataclass(frozen=True)
class _Run:
    config: MoiraiMoEConfig
    plan: Plan
    variables: Any
    tokens: Tokens
    draw: Draw
    record: bool

    def first(self) -> Distribution:
        """The distribution of the first patch [B, C, P], which all samples share."""
        targets_C = jnp.arange(self.plan.targets)
        return self._apply(
            leading(self.tokens, self.plan.known), (targets_C + 1) * self.plan.past - 1
        )

    def chunk(self, first: Distribution, source: Any) -> tuple[jax.Array, list[Distribution]]:
        """(values [S, B, M, C, P], what was drawn from in each loop) of some samples.

        A step draws a patch and finds the distribution of the one behind it: samplers take long to
        compile, and so each loop has them once.
        """
        plan, series = self.plan, len(self.tokens.target)
        samples = plan.samples // plan.chunks
        cells = plan.targets, self.config.patch_length
        rows = jax.tree.map(lambda leaf: jnp.tile(leaf, (samples, *(1,) * (leaf.ndim - 1))), first)
        future = jnp.zeros((samples * series, plan.patches, *cells), jnp.float32)
        recorded = []
        if plan.patches == 1:
            future = self._write(future, rows, source, 0)
        for start, end in plan.loops():
            step = self._stepper(samples, end - 1, source)
            last = end == plan.patches  # its last draw has no patch behind it
            (future, rows), found = lax.scan(step, (future, rows), jnp.arange(start, end + last))
            recorded.append(jax.tree.map(lambda leaf, n=end - start: leaf[:n], found))
        return future.reshape(samples, series, *future.shape[1:]), recorded

    def _stepper(self, samples: int, slots: int, source: Any) -> Callable[..., Any]:
        """A step of a scan over (the forecast, the distribution of patch index - 1)."""
        seen = self._rows(samples, slots)

        def step(carry, index):
            future, rows = carry
            future = self._write(future, rows, source, index - 1)
            rows = lax.cond(
                index < self.plan.patches,
                lambda: self._step(seen, future, slots, index),
                lambda: rows,
            )
            return (future, rows), rows if self.record else None

        return step

    def _rows(self, samples: int, slots: int) -> Tokens:
        """Tokens of the past and of so many patches of the forecast, a row for each sample."""
        tokens = leading(self.tokens, self.plan.known + slots * self.plan.targets)
        return jax.tree.map(lambda leaf: jnp.tile(leaf, (samples, *(1,) * (leaf.ndim - 1))), tokens)

    def _step(self, seen: Tokens, future, slots: int, index) -> Distribution:
        """The distribution of patch `index`, from the patches before it."""
        plan = self.plan
        written = future[:, :slots].reshape(len(future), slots * plan.targets, -1)
        target = lax.dynamic_update_slice_in_dim(
            jnp.asarray(seen.target, jnp.float32), written, plan.known, axis=1
        )
        slot_T = (jnp.arange(target.shape[1]) - plan.known) // plan.targets
        tokens = replace(
            seen,
            target=target,
            prediction_mask=jnp.broadcast_to(slot_T >= index, seen.prediction_mask.shape),
        )
        last = plan.known + (index - 1) * plan.targets
        return self._apply(tokens, last + jnp.arange(plan.targets))

    def _apply(self, tokens: Tokens, read_C: jax.Array) -> Distribution:
        read_BC = jnp.broadcast_to(read_C[None], (len(tokens.target), len(read_C)))
        model = MoiraiMoE(self.config)
        return model.apply(self.variables, tokens, read_at=read_BC)  # type: ignore[return-value]

    def _write(self, future, distribution: Distribution, source: Any, step) -> jax.Array:
        """The forecast with the draw of this step in it."""
        values = self.draw(distribution, source, step)
        cell_P = jnp.arange(values.shape[-1])
        # every token of a window has the same patch size
        values = jnp.where(cell_P < self.tokens.patch_size[0, 0], values, 0.0)
        return lax.dynamic_update_slice_in_dim(future, values[:, None], step, axis=1)


def steps_of(values_SBMCP: jax.Array, patch: int, horizon: int) -> jax.Array:
    """Patches as steps: [S, B, M, C, P] -> [B, S, H, C]."""
    values = values_SBMCP[..., :patch].transpose(1, 0, 2, 4, 3)
    return values.reshape(*values.shape[:2], -1, values.shape[-1])[:, :, :horizon]
