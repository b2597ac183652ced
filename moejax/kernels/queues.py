"""From the queues' lengths in each span to every choice's place in its expert's queue.

Letters: G token groups, N spans of a group, Q queues of an expert, L columns.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from moejax.kernels.plan import RouterPlan

# Tile of a table that a program sums up.
ROWS = 128
COLUMNS = 32
WARPS = 4


def queue_places(
    plan: RouterPlan, index_GSk: jax.Array, valid_GS: jax.Array, table_GNQL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(places in the queues [G, S, k], -1 without one; choices of each column [L]), both int32.

    `table` counts the choices of valid tokens in each span. Within a span tokens are compared in
    pairs. Outputs from `num_experts` on have no queue, but are counted.
    """
    before_GNQL, total_GQL = prefix_sums(table_GNQL, interpret=plan.interpret)
    narrow = pl.BlockSpec((None, plan.rows, plan.slots), lambda g, n: (g, n, 0))
    return pl.pallas_call(
        partial(_place_span, plan),
        grid=(index_GSk.shape[0], plan.spans),
        in_specs=[
            narrow,
            pl.BlockSpec((None, plan.rows), lambda g, n: (g, n)),
            pl.BlockSpec((None, None, plan.queues, plan.columns), lambda g, n: (g, n, 0, 0)),
            pl.BlockSpec(total_GQL.shape, lambda g, n: (0, 0, 0)),
        ],
        out_specs=[narrow, pl.BlockSpec((plan.columns,), lambda g, n: 0)],
        out_shape=[
            jax.ShapeDtypeStruct(index_GSk.shape, jnp.int32),
            jax.ShapeDtypeStruct((plan.columns,), jnp.int32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=max(1, plan.rows // 32), num_stages=1),
        interpret=plan.interpret,
        name="moejax_router_places",
    )(index_GSk, valid_GS, before_GNQL, total_GQL)


def _place_span(plan: RouterPlan, index, valid, before, total, position, counts):
    group, span = pl.program_id(0), pl.program_id(1)
    rows = plan.rows
    token_R = lax.iota(jnp.int32, rows)
    live_R = span * rows + token_R < plan.group_tokens
    valid_R = plgpu.load(valid.at[:], mask=live_R, other=False) & live_R

    def column(number: int):
        return jnp.full((rows,), number, jnp.int32)

    def choices(slot):
        index_R = plgpu.load(index.at[token_R, column(slot)], mask=live_R, other=-1)
        return jnp.where(valid_R, index_R, -1)

    index_kR = [choices(slot) for slot in range(plan.top_k)]
    # the sums go down the columns, which a thread holds, not across threads
    earlier_RR = token_R[:, None] < token_R[None, :]
    for slot, index_R in enumerate(index_kR):
        queues_R = (index_R >= 0) & (index_R < plan.num_experts)
        at_R = jnp.where(queues_R, plan.column_of(index_R), 0)
        queue = slot if plan.slot_queues else 0
        place_R = plgpu.load(before.at[column(queue), at_R], mask=queues_R, other=0)
        for earlier in range(queue):
            where = (jnp.broadcast_to(group, (rows,)), column(earlier), at_R)
            place_R += plgpu.load(total.at[where], mask=queues_R, other=0)
        same_RR = index_R[:, None] == index_R[None, :]
        for rival_R in [] if plan.slot_queues else index_kR:
            same_RR = same_RR | (rival_R[:, None] == index_R[None, :])
        place_R += jnp.sum(jnp.where(same_RR & earlier_RR, 1, 0), axis=0)
        place_R = jnp.where(queues_R, place_R, -1)
        plgpu.store(position.at[token_R, column(slot)], place_R, mask=live_R)

    @pl.when((group == 0) & (span == 0))
    def _():
        counts_L = jnp.zeros((plan.columns,), jnp.int32)
        for queue in range(plan.queues):
            add = lambda g, sum_L, queue=queue: sum_L + total[g, queue, :]  # noqa: E731
            counts_L = lax.fori_loop(0, total.shape[0], add, counts_L)
        counts[:] = counts_L


def prefix_sums(table_GNQL: jax.Array, *, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """int32 (sums of the spans before each [G, N, Q, L], of all [G, Q, L]) of int8 tables.

    A program serves ROWS spans and sums up all that come before them by itself: reading a table
    several times costs less than passing sums from program to program.
    """
    groups, spans, queues, columns = table_GNQL.shape
    tile = min(COLUMNS, columns)
    rows = min(ROWS, pl.next_power_of_2(spans))
    block = pl.BlockSpec(
        (None, spans, None, tile), lambda g, q, c: (g, 0, q, c % (columns // tile))
    )
    row = pl.BlockSpec((None, None, tile), lambda g, q, c: (g, q, c % (columns // tile)))
    return pl.pallas_call(
        partial(_sum_spans, rows, columns // tile),
        grid=(groups, queues, columns // tile * pl.cdiv(spans, rows)),
        in_specs=[block],
        out_specs=[block, row],
        out_shape=[
            jax.ShapeDtypeStruct(table_GNQL.shape, jnp.int32),
            jax.ShapeDtypeStruct((groups, queues, columns), jnp.int32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="moejax_router_prefix",
    )(table_GNQL)


def _sum_spans(rows: int, column_tiles: int, table, before, total):
    spans, columns = table.shape
    chunk = pl.program_id(2) // column_tiles
    chunks = pl.cdiv(spans, rows)

    def load(chunk):
        at = pl.ds(chunk * rows, rows)
        live_RL = chunk * rows + lax.broadcasted_iota(jnp.int32, (rows, columns), 0) < spans
        return plgpu.load(table.at[at, :], mask=live_RL, other=0).astype(jnp.int32), at, live_RL

    zero_RL = jnp.zeros((rows, columns), jnp.int32)
    earlier_RL = lax.fori_loop(0, chunk, lambda i, sum_RL: sum_RL + load(i)[0], zero_RL)
    earlier_L = jnp.sum(earlier_RL, axis=0)
    length_RL, at, live_RL = load(chunk)
    before_RL = jnp.cumsum(length_RL, axis=0) - length_RL + earlier_L[None, :]
    plgpu.store(before.at[at, :], before_RL, mask=live_RL)

    @pl.when(chunk == chunks - 1)
    def _():
        total[:] = earlier_L + jnp.sum(length_RL, axis=0)
