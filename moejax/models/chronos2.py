"""Chronos-2: an encoder over patches of series that may look at each other within a group.

B series, L values, P of them a patch, S tokens (past, register, future), M patches ahead, Q levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moejax.checks import require_positive
from moejax.layers.attention import attention
from moejax.layers.embedding import embedding
from moejax.layers.linear import linear
from moejax.layers.rope import RopeConfig, rope, rope_rows
from moejax.layers.t5 import T5Attention, T5FeedForward, T5Norm
from moejax.models.chronos_bolt import REGISTER, ResidualBlock, normalise
from moejax.models.t5 import T5Config


@dataclass(frozen=True, kw_only=True)
class Chronos2Config:
    """Names as published in `chronos_config`; of `t5` the encoder's sizes count."""

    t5: T5Config
    quantiles: tuple[float, ...]
    context_length: int = 8192
    input_patch_size: int = 16
    max_output_patches: int = 64
    time_encoding_scale: int = 8192
    use_arcsinh: bool = True
    use_reg_token: bool = True
    rope_theta: float = 10000.0

    def __post_init__(self):
        sizes = ("context_length", "input_patch_size", "max_output_patches", "time_encoding_scale")
        for name in sizes:
            require_positive(name, getattr(self, name))
        if self.t5.d_kv % 2:
            raise ValueError(f"d_kv is {self.t5.d_kv}; rotated positions need an even one")

    @classmethod
    def from_fields(cls, t5: T5Config, fields: Mapping[str, Any]) -> "Chronos2Config":
        """Of config.json; ValueError for patches of another size ahead or with overlap."""
        found = fields["chronos_config"]
        size = found["input_patch_size"]
        for name in ("output_patch_size", "input_patch_stride"):
            if found.get(name, size) != size:
                raise ValueError(f"{name} is {found[name]}; it must be input_patch_size, {size}")
        names = set(cls.__dataclass_fields__) - {"t5", "quantiles", "rope_theta"}
        values = {name: found[name] for name in names if name in found}
        theta = fields.get("rope_theta", 10000.0)
        return cls(t5=t5, quantiles=tuple(found["quantiles"]), rope_theta=theta, **values)


class TimeAttention(T5Attention):
    """Self-attention of a series' tokens with turned positions, without a scale."""

    def attend(self, x_BSD: jax.Array, mask: jax.Array, tables: Any) -> jax.Array:
        """[B, S, D] -> [B, S, D]; mask [B, 1, 1, S]."""
        q, k = (rope(self._heads(x_BSD, kernel), *tables) for kernel in (self.query, self.key))
        y_BNSH = attention(q, k, self._heads(x_BSD, self.value), mask, scale=1.0)
        y_BSI = y_BNSH.transpose(0, 2, 1, 3).reshape(*x_BSD.shape[:2], -1)
        return linear(y_BSI, self.output.astype(x_BSD.dtype))


class Block2(nn.Module):
    """Attention over time, then over a group's series at the same token, then a feed-forward."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BSD, mask_BS, group_mask_SBB, tables) -> jax.Array:
        t5 = self.config
        sizes = t5.d_model, t5.num_heads, t5.d_kv, t5.initializer_factor

        def norm(name: str, x: jax.Array) -> jax.Array:
            return T5Norm(t5.layer_norm_epsilon, t5.initializer_factor, name=name)(x)

        time = TimeAttention(*sizes, name="time")
        y_BSD = norm("time_norm", x_BSD)
        x_BSD = x_BSD + time.attend(y_BSD, mask_BS[:, None, None, :], tables)
        group = T5Attention(*sizes, name="group")
        y_SBD = norm("group_norm", x_BSD).swapaxes(0, 1)
        y_SBD = group(y_SBD, group.key_values(y_SBD), group_mask_SBB[:, None])
        x_BSD = x_BSD + y_SBD.swapaxes(0, 1)
        factor = t5.initializer_factor
        ffn = T5FeedForward(t5.d_model, t5.d_ff, t5.feed_forward, 0.0, factor, name="ffn")
        return x_BSD + ffn(norm("ffn_norm", x_BSD))


class Chronos2(nn.Module):
    """values float32 [B, L], NaN where missing -> quantiles float32 [B, Q, M * P].

    group_ids [B]: series of one number see each other; None: none does. ahead [B, up to M * P]:
    values known of the future, NaN elsewhere. ValueError for more patches than the config's.
    """

    config: Chronos2Config

    def setup(self):
        config, t5 = self.config, self.config.t5
        init = nn.initializers.normal(t5.initializer_factor)
        self.shared = self.param("shared", init, (t5.vocab_size, t5.d_model))
        self.blocks = [Block2(t5) for _ in range(t5.num_layers)]
        self.final_norm = T5Norm(t5.layer_norm_epsilon, t5.initializer_factor)
        self.input_patch_embedding = ResidualBlock(t5.d_ff, t5.d_model)
        width = len(config.quantiles) * config.input_patch_size
        self.output_patch_embedding = ResidualBlock(t5.d_ff, width)

    def __call__(
        self,
        values_BL: jax.Array,
        num_patches: int = 1,
        group_ids_B: jax.Array | None = None,
        ahead: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        if not 1 <= num_patches <= config.max_output_patches:
            raise ValueError(
                f"num_patches is {num_patches}; it must be from 1 to {config.max_output_patches}"
            )
        values_BL = values_BL.astype(jnp.float32)[:, -config.context_length :]
        scaled_BL, loc, scale = normalise(values_BL)
        batch, steps = len(values_BL), num_patches * config.input_patch_size
        future = jnp.full((batch, steps), jnp.nan)
        if ahead is not None:
            future = future.at[:, : ahead.shape[1]].set((ahead - loc) / scale)
        past_BSD, mask_BS = self._embed(scaled_BL, False)
        future_BMD, _ = self._embed(future, True)
        parts, masks = [past_BSD], [mask_BS]
        if config.use_reg_token:
            register = embedding(jnp.full((batch, 1), REGISTER, jnp.int32), self.shared)
            parts.append(register.astype(past_BSD.dtype))
        parts.append(future_BMD)
        x_BSD = jnp.concatenate(parts, axis=1)
        rest = x_BSD.shape[1] - mask_BS.shape[1]
        mask_BS = jnp.concatenate([*masks, jnp.ones((batch, rest), bool)], axis=1)
        y_BMD = self._encode(x_BSD, mask_BS, group_ids_B)[:, -num_patches:]
        return self._values(self.output_patch_embedding(y_BMD), loc, scale)

    def _embed(self, values_BL: jax.Array, ahead: bool) -> tuple[jax.Array, jax.Array]:
        """(tokens of patches [B, N, D], mask [B, N]: anything is there)."""
        config = self.config
        size = config.input_patch_size
        if config.use_arcsinh:
            values_BL = jnp.arcsinh(values_BL)
        front = -values_BL.shape[1] % size
        values_BL = jnp.pad(values_BL, ((0, 0), (front, 0)), constant_values=jnp.nan)
        length = values_BL.shape[1]
        first = 0 if ahead else -length
        times_L = np.arange(first, first + length, dtype=np.float32) / config.time_encoding_scale
        shape = len(values_BL), -1, size
        there_BL = ~jnp.isnan(values_BL)
        rows = (
            jnp.broadcast_to(times_L[None], values_BL.shape),
            jnp.where(there_BL, values_BL, 0.0),
            there_BL.astype(jnp.float32),
        )
        features = jnp.concatenate([row.reshape(shape) for row in rows], axis=-1)
        mask_BN = jnp.any(there_BL.reshape(shape), axis=-1)
        return self.input_patch_embedding(features.astype(config.t5.dtype)), mask_BN

    def _encode(self, x_BSD, mask_BS, group_ids_B) -> jax.Array:
        batch, steps, _ = x_BSD.shape
        if group_ids_B is None:
            group_ids_B = jnp.arange(batch)
        same_BB = group_ids_B[:, None] == group_ids_B[None, :]
        group_mask_SBB = same_BB[None] & mask_BS.T[:, None, :]
        rope_config = RopeConfig(base=self.config.rope_theta)
        tables = rope_rows(rope_config, self.config.t5.d_kv, np.arange(steps))
        for block in self.blocks:
            x_BSD = block(x_BSD, mask_BS, group_mask_SBB, tables)
        return self.final_norm(x_BSD)

    def _values(self, y_BMO: jax.Array, loc: jax.Array, scale: jax.Array) -> jax.Array:
        batch, patches, _ = y_BMO.shape
        y_BMQP = y_BMO.reshape(batch, patches, len(self.config.quantiles), -1)
        y_BQH = y_BMQP.transpose(0, 2, 1, 3).reshape(batch, len(self.config.quantiles), -1)
        y_BQH = y_BQH.astype(jnp.float32)
        y_BQH = jnp.sinh(y_BQH) if self.config.use_arcsinh else y_BQH
        return y_BQH * scale[..., None] + loc[..., None]
