"""Self-attention of packed series: by time, within a sample, aware of the variates.

N heads of width H, T tokens, R tokens that are read.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.layers.attention import attention, attention_dropout
from moejax.layers.norm import Norm
from moejax.layers.rope import RopeConfig, rope, rope_rows
from moejax.layers.self_attention import project


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "same_variate", "cos", "sin", "read"],
    meta_fields=[],
)
@dataclass(frozen=True)
class PackedSpan:
    """What attention needs to know of the tokens; the same for all layers.

    mask [B, 1, T, T] bool: query (row) sees key. same_variate [B, 1, T, T] bool. cos, sin
    [B, 1, T, W]. `read` [B, R] int32: the tokens that are read, None for all.
    """

    mask: jax.Array
    same_variate: jax.Array
    cos: jax.Array
    sin: jax.Array
    read: jax.Array | None = None

    def queries(self) -> "PackedSpan":
        """The same with the rows of the tokens that are read alone."""
        if self.read is None:
            return self
        rows = [pick(one, self.read, axis=2) for one in (self.mask, self.same_variate)]
        return PackedSpan(
            *rows, *(pick(table, self.read, axis=2) for table in (self.cos, self.sin))
        )


def packed_span(
    sample_BT: jax.Array,
    time_BT: jax.Array,
    variate_BT: jax.Array,
    *,
    width: int,
    read_BR: jax.Array | None = None,
    limit: int | None = None,
) -> PackedSpan:
    """A token sees those of its sample that are not later, of all variates.

    Padding, sample 0, sees padding. `width`: features of a head that turn with the time. `limit`:
    see rope_rows.
    """
    sample = sample_BT[:, :, None] == sample_BT[:, None, :]
    mask = sample & (time_BT[:, None, :] <= time_BT[:, :, None])
    same_variate = variate_BT[:, :, None] == variate_BT[:, None, :]
    cos, sin = rope_rows(RopeConfig(interleaved=True), width, time_BT, limit=limit)
    mask, same_variate, cos, sin = (x[:, None] for x in (mask, same_variate, cos, sin))
    return PackedSpan(mask, same_variate, cos, sin, read_BR)


def pick(x: jax.Array, index_BR: jax.Array, axis: int = 1) -> jax.Array:
    """Rows index[b] of x[b] along an axis: [B, ..., T, ...] -> [B, ..., R, ...]."""
    shape = [1] * x.ndim
    shape[0], shape[axis] = index_BR.shape
    return jnp.take_along_axis(x, index_BR.reshape(shape), axis=axis)


class PackedAttention(nn.Module):
    """softmax(q k^T / sqrt(H) + bias) v, with RMS norm of queries and keys over each head, half of
    whose features then turn by the time; the bias of a head depends on whether query and key are
    of the same variate.

    Shapes: x [B, T, D] -> [B, T, D]; with `last`, of the tokens that the span reads: [B, R, D].
    Params query, key, value, output [D, D], query_norm, key_norm, variate_bias [2, N] (row 1: the
    same variate). Rng "dropout" in training with `dropout`, which acts on the weights.
    """

    num_heads: int
    norm_eps: float
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, span: PackedSpan, *, last: bool = False, train: bool = False
    ) -> jax.Array:
        width = x_BTD.shape[-1]
        rows = span.queries() if last else span
        read_BRD = x_BTD if not last or span.read is None else pick(x_BTD, span.read)
        q_BNRH = rope(self._heads(read_BRD, "query"), rows.cos, rows.sin, interleaved=True)
        k_BNTH = rope(self._heads(x_BTD, "key"), span.cos, span.sin, interleaved=True)
        v_BNTH = self._heads(x_BTD, "value")
        table_2N = self.param("variate_bias", nn.initializers.normal(1.0), (2, self.num_heads))
        other, same = table_2N[:, None, :, None, None]
        bias_BNRT = jnp.where(rows.same_variate, same, other)
        scores = q_BNRH, k_BNTH, v_BNTH, rows.mask, bias_BNRT
        scale = q_BNRH.shape[-1] ** -0.5
        if train and self.dropout:
            key = self.make_rng("dropout")
            y_BNRH = attention_dropout(key, *scores, scale=scale, rate=self.dropout)
        else:
            y_BNRH = attention(*scores, scale=scale)
        y_BRD = y_BNRH.transpose(0, 2, 1, 3).reshape(*read_BRD.shape[:2], -1)
        return project(self, y_BRD, "output", width)

    def _heads(self, x_BTD: jax.Array, name: str) -> jax.Array:
        """[B, T, D] -> [B, N, T, H]."""
        y = project(self, x_BTD, name, x_BTD.shape[-1])
        y = y.reshape(*x_BTD.shape[:2], self.num_heads, -1)
        if name != "value":
            y = Norm("rms_norm", self.norm_eps, name=f"{name}_norm")(y)
        return y.transpose(0, 2, 1, 3)
