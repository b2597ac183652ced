"""Rows to experts and back: copies of tokens in slots, and their weighted sum.

Both ways know both maps (choice of a slot, slot of a choice), so neither they nor their gradients
scatter rows. Letters as in assignment.py, and N slots, A = T * k choices (t * k + j);
[N, B] are blocks of choices too.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from moejax.moe.assignment import Routing

# Choices that are compared in pairs to find their places.
BLOCK = 128


@partial(jax.tree_util.register_dataclass, data_fields=["choice", "slot"], meta_fields=[])
@dataclass(frozen=True)
class Slots:
    """Where rows go. choice [N] int32: the choice that fills a slot, A if none does;
    slot [T, k] int32: the slot of a choice, N if it has none.
    """

    choice: jax.Array
    slot: jax.Array


def capacity_slots(routing: Routing, position_Tk: jax.Array) -> Slots:
    """Slots of fixed size, expert-major: [E, G, C] places in N = E * G * C."""
    num_tokens, k = routing.index.shape
    groups, places = routing.num_groups, routing.capacity or max(num_tokens, 1)
    num_slots = routing.num_experts * groups * places
    group_T = jnp.arange(num_tokens, dtype=jnp.int32) // max(num_tokens // groups, 1)
    row_Tk = routing.index * (groups * places) + group_T[:, None] * places + position_Tk
    slot_Tk = jnp.where(routing.served, row_Tk, num_slots).astype(jnp.int32)
    choice_A = jnp.arange(num_tokens * k, dtype=jnp.int32)
    empty_N = jnp.full(num_slots, num_tokens * k, jnp.int32)
    return Slots(empty_N.at[slot_Tk.reshape(-1)].set(choice_A, mode="drop"), slot_Tk)


def sorted_slots(routing: Routing, spare: int = 0) -> tuple[Slots, jax.Array]:
    """Slots in the order of experts without gaps, N = A + spare, and the rows of each [E] int32.

    Choices that no real expert serves come last and have no slot.
    """
    num_tokens, k = routing.index.shape
    num_choices = num_tokens * k
    expert_A = jnp.where(routing.served, routing.index, routing.num_experts).reshape(-1)
    order_A = jnp.argsort(expert_A, stable=True).astype(jnp.int32)
    count_E = jnp.bincount(expert_A, length=routing.num_experts + 1)[:-1].astype(jnp.int32)
    row_A = jnp.arange(num_choices, dtype=jnp.int32)
    filled_A = row_A < jnp.sum(count_E)
    choice_A = jnp.where(filled_A, order_A, num_choices)
    choice_N = jnp.pad(choice_A, (0, spare), constant_values=num_choices)
    slot_A = (
        jnp.zeros_like(row_A)
        .at[order_A]
        .set(jnp.where(filled_A, row_A, num_choices + spare), unique_indices=True)
    )
    return Slots(choice_N, slot_A.reshape(num_tokens, k)), count_E


def tiled_slots(routing: Routing, rows: int, limit: int | None = None) -> tuple[Slots, jax.Array]:
    """The same with each expert's slots filling whole tiles of rows; and its tiles [E] int32.

    An expert without rows has an empty tile. There is room for `limit` choices, None: all A of
    them, N = rows * (limit // rows + E), used or not; choices beyond that have no slot.
    """
    num_tokens, k = routing.index.shape
    room = num_tokens * k if limit is None else limit
    num_slots = rows * (room // rows + routing.num_experts)
    rank_A, count_E = _ranks(routing)
    tiles_E = jnp.maximum(-(-count_E // rows), 1)
    first_E = (jnp.cumsum(tiles_E) - tiles_E) * rows
    row_Tk = first_E.at[routing.index].get(mode="clip") + rank_A.reshape(num_tokens, k)
    slot_Tk = jnp.minimum(jnp.where(routing.served, row_Tk, num_slots), num_slots)
    choice_A = jnp.arange(num_tokens * k, dtype=jnp.int32)
    empty_N = jnp.full(num_slots, num_tokens * k, jnp.int32)
    choice_N = empty_N.at[slot_Tk.reshape(-1)].set(choice_A, mode="drop")
    return Slots(choice_N, slot_Tk.astype(jnp.int32)), tiles_E


def _ranks(routing: Routing) -> tuple[jax.Array, jax.Array]:
    """(Place of each choice among those of its expert [A], rows of each expert [E]), int32.

    Choices are counted in blocks, and compared in pairs within one: on a GPU that takes an eighth
    of the time of a sort and a scatter that counts, on a CPU it takes longer than those.
    """
    num_choices, num_experts = routing.index.size, routing.num_experts
    expert_A = jnp.where(routing.served, routing.index, num_experts).reshape(-1)
    blocks = max(-(-num_choices // BLOCK), 1)
    spare = blocks * BLOCK - num_choices
    expert_NB = jnp.pad(expert_A, (0, spare), constant_values=num_experts).reshape(blocks, BLOCK)
    is_NBE = expert_NB[:, :, None] == jnp.arange(num_experts)[None, None, :]
    count_NE = jnp.sum(is_NBE, axis=1, dtype=jnp.int32)
    before_NE = jnp.cumsum(count_NE, axis=0) - count_NE
    place_B = jnp.arange(BLOCK)
    earlier_1BB = (place_B[:, None] > place_B[None, :])[None]
    is_NBB = (expert_NB[:, :, None] == expert_NB[:, None, :]) & earlier_1BB
    rank_NB = jnp.sum(is_NBB, axis=2, dtype=jnp.int32)
    rank_NB += jnp.take_along_axis(before_NE, expert_NB, axis=1, mode="clip")
    return rank_NB.reshape(-1)[:num_choices], jnp.sum(count_NE, axis=0)


@jax.custom_vjp
def spread(x_TD: jax.Array, slots: Slots) -> jax.Array:
    """The token of every slot: [T, D] -> [N, D]; 0 in an empty slot."""
    return _rows(x_TD, slots.choice // slots.slot.shape[1])


def _spread_forward(x_TD, slots: Slots):
    return spread(x_TD, slots), slots


def _spread_backward(slots: Slots, grad_ND):
    columns = [_rows(grad_ND, slots.slot[:, j]) for j in range(slots.slot.shape[1])]
    return sum(columns[1:], columns[0]), None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def collect(y_ND: jax.Array, weight_Tk: jax.Array, slots: Slots) -> jax.Array:
    """Weighted sum of a token's slots: [N, D], [T, k] -> [T, D] in the dtype of the weights."""
    # one fused loop a choice: a single gather of [T, k, D] costs six times as much on a CPU
    total_TD = jnp.zeros((slots.slot.shape[0], y_ND.shape[1]), weight_Tk.dtype)
    for j in range(slots.slot.shape[1]):
        total_TD += weight_Tk[:, j, None] * _rows(y_ND, slots.slot[:, j]).astype(weight_Tk.dtype)
    return total_TD


def _collect_forward(y_ND, weight_Tk, slots: Slots):
    return collect(y_ND, weight_Tk, slots), (y_ND, weight_Tk, slots)


def _collect_backward(saved, grad_TD):
    y_ND, weight_Tk, slots = saved
    k = slots.slot.shape[1]
    weight_N = weight_Tk.reshape(-1).at[slots.choice].get(mode="fill", fill_value=0)
    grad_ND = weight_N[:, None] * _rows(grad_TD, slots.choice // k)
    columns = [
        jnp.sum(grad_TD * _rows(y_ND, slots.slot[:, j]).astype(grad_TD.dtype), axis=-1)
        for j in range(k)
    ]
    return grad_ND.astype(y_ND.dtype), jnp.stack(columns, axis=-1), None


collect.defvjp(_collect_forward, _collect_backward)


def _rows(x_TD: jax.Array, index_N: jax.Array) -> jax.Array:
    """Rows by index; 0 for an index beyond the last row."""
    return x_TD.at[index_N].get(mode="fill", fill_value=0)
