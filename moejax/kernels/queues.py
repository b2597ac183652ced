"""From the queues' lengths in each span to every choice's place in its expert's queue.

Letters: G token groups, N spans of a group, Q queues of an expert, L columns.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moejax.kernels.plan import RouterPlan

ROWS = 128
COLUMNS = 16


def queue_places(
    plan: RouterPlan, index_GSk: jax.Array, place_GSk: jax.Array, table_GNQL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(places in the whole queues [G, S, k], choices of each queue [G, Q, L]), int32.

    `place` counts from the start of a span and is -1 where a choice does not queue.
    """
    before_GNQL, total_GQL = prefix_sums(table_GNQL, interpret=plan.interpret)
    before_GNQL = before_GNQL + (jnp.cumsum(total_GQL, axis=1) - total_GQL)[:, None]
    groups, tokens, k = index_GSk.shape
    group = jnp.arange(groups)[:, None, None]
    span = (jnp.arange(tokens) // (plan.block * plan.span))[None, :, None]
    queue = jnp.arange(k)[None, None, :] if plan.slot_queues else jnp.zeros((1, 1, 1), jnp.int32)
    ahead_GSk = before_GNQL[group, span, queue, plan.column_of(index_GSk)]
    return jnp.where(place_GSk < 0, -1, place_GSk + ahead_GSk), total_GQL


def prefix_sums(table_GNQL: jax.Array, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """(sums of the spans before each [G, N, Q, L], sums of all [G, Q, L]) of int32 tables."""
    groups, spans, queues, columns = table_GNQL.shape
    tile = min(COLUMNS, columns)
    block = pl.BlockSpec((None, spans, None, tile), lambda g, q, c: (g, 0, q, c))
    return pl.pallas_call(
        _sum_spans,
        grid=(groups, queues, columns // tile),
        in_specs=[block],
        out_specs=[block, pl.BlockSpec((None, None, tile), lambda g, q, c: (g, q, c))],
        out_shape=[
            jax.ShapeDtypeStruct(table_GNQL.shape, jnp.int32),
            jax.ShapeDtypeStruct((groups, queues, columns), jnp.int32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="moejax_router_prefix",
    )(table_GNQL)


def _sum_spans(table, before, total):
    spans, columns = table.shape
    rows = min(ROWS, pl.next_power_of_2(spans))

    def chunk(step, carry_L):
        span_R = step * rows + lax.broadcasted_iota(jnp.int32, (rows, columns), 0)
        at = pl.ds(step * rows, rows)
        length_RL = plgpu.load(table.at[at, :], mask=span_R < spans, other=0)
        plgpu.store(
            before.at[at, :],
            jnp.cumsum(length_RL, axis=0) - length_RL + carry_L[None, :],
            mask=span_R < spans,
        )
        return carry_L + jnp.sum(length_RL, axis=0)

    carry_L = jnp.zeros((columns,), jnp.int32)
    total[:] = lax.fori_loop(0, pl.cdiv(spans, rows), chunk, carry_L)
