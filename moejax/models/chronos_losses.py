"""Losses of Chronos models on tokens."""

import jax
import jax.numpy as jnp

from moejax.models.chronos_moe import MoEOutput

IGNORED = -100


def token_loss(logits_BUV: jax.Array, labels_BU: jax.Array) -> jax.Array:
    """Mean cross-entropy of the labels, a scalar; labels of -100 do not count.

    Where there are more positions on one side, the first ones count; without a label it is 0.
    """
    steps = min(logits_BUV.shape[1], labels_BU.shape[1])
    logits_BUV, labels_BU = logits_BUV[:, :steps], labels_BU[:, :steps]
    counts_BU = labels_BU != IGNORED
    wanted_BU1 = jnp.where(counts_BU, labels_BU, 0)[..., None]
    logits_BUV = logits_BUV.astype(jnp.float32)
    log_BUV = jax.nn.log_softmax(logits_BUV, axis=-1)
    log_BU = jnp.take_along_axis(log_BUV, wanted_BU1, axis=-1)[..., 0]
    total = jnp.sum(jnp.where(counts_BU, -log_BU, 0.0))
    return total / jnp.maximum(jnp.sum(counts_BU), 1)


def mixture_loss(out: MoEOutput, labels_BU: jax.Array, balance_weight: float) -> jax.Array:
    """`token_loss` plus the weighted load-balancing loss."""
    return token_loss(out.logits, labels_BU) + balance_weight * out.balance


def shift_right(labels_BU: jax.Array, start: int, pad: int) -> jax.Array:
    """What the decoder reads to predict the labels: the start, then all labels but the last."""
    first_B1 = jnp.full_like(labels_BU[:, :1], start)
    ids_BU = jnp.concatenate([first_B1, labels_BU[:, :-1]], axis=1)
    return jnp.where(ids_BU == IGNORED, pad, ids_BU)
