"""The settings of the router's kernels, and the layout of a tile.

A tile holds B tokens and the M outputs of the router in L columns. Triton wants powers of two, so
columns are padded: with groups each group is, and the groups are, so that [B, L] reshapes to
[B, groups, group]. Column order is output order.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# With a queue for each slot, counters of a column share integers: a tile's, which reach 1, have
# 4 bits, so that 8 slots fit; a span's have 8 bits, even slots in one integer, odd in another.
TILE_BITS, SPAN_BITS = 4, 8
TILE_SLOTS = 32 // TILE_BITS
# A span's counts are stored as int8.
MOST_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class RouterPlan:
    """Settings of the fused router: those of `top_k_router`, the shape, the queues, the tiling.

    `by_logits`: choices after the first go by the logits (GShard). `slot_queues`: all first choices
    queue before any second (choice-major). A program serves `span` tiles of `block` tokens, which
    all lie in one of the token groups of `group_tokens`.
    """

    num_outputs: int
    num_experts: int
    top_k: int
    score: str
    normalise: bool
    scale: float
    num_groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    by_logits: bool = False
    slot_queues: bool = False
    group_tokens: int = 1
    block: int = 16
    span: int = 1
    warps: int = 4
    interpret: bool = False

    def __post_init__(self):
        if self.rows & (self.rows - 1) or self.rows > MOST_ROWS:
            raise ValueError(
                f"block is {self.block} and span {self.span}; their product must be a power of two"
                f" up to {MOST_ROWS}"
            )

    @property
    def rows(self) -> int:
        """Tokens of a span."""
        return self.block * self.span

    @property
    def words(self) -> int:
        """Integers that hold a tile's counters of a column."""
        return pl.cdiv(self.top_k, TILE_SLOTS) if self.slot_queues else 1

    @property
    def group_size(self) -> int:
        """Outputs of a group of experts."""
        return self.num_outputs // self.num_groups

    @property
    def group_columns(self) -> int:
        """Columns of a group in a tile."""
        return pl.next_power_of_2(self.group_size)

    @property
    def columns(self) -> int:
        """L, the columns of a tile."""
        return self.group_columns * pl.next_power_of_2(self.num_groups)

    @property
    def slots(self) -> int:
        """k rounded up to a power of two."""
        return pl.next_power_of_2(self.top_k)

    @property
    def queues(self) -> int:
        """Queues of an expert: one, or one for each choice."""
        return self.top_k if self.slot_queues else 1

    @property
    def spans(self) -> int:
        """Programs that share a group of tokens."""
        return pl.cdiv(self.group_tokens, self.rows)

    @property
    def padded_groups(self) -> bool:
        """Whether columns differ from output numbers."""
        return self.num_groups > 1 and self.group_columns != self.group_size

    def column_of(self, index):
        """The column of an output."""
        if not self.padded_groups:
            return index
        return index // self.group_size * self.group_columns + index % self.group_size

    def output_of(self, column):
        """The output of a column; of a padding column, one beyond the last."""
        if not self.padded_groups:
            return column
        group, inside = column // self.group_columns, column % self.group_columns
        return jnp.where(self.is_output(column), group * self.group_size + inside, self.num_outputs)

    def is_output(self, column: jax.Array) -> jax.Array:
        """Whether a column is no padding."""
        if not self.padded_groups:
            return column < self.num_outputs
        inside = column % self.group_columns < self.group_size
        return inside & (column < self.num_groups * self.group_columns)
