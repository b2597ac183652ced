"""Chronos-Bolt: patches of a series through T5, and all quantiles of the forecast at once.

L values, P of them a patch, S tokens: patches and the register; Q quantile levels, H steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from moejax.checks import require_positive
from moejax.layers.embedding import embedding
from moejax.models.chronos_experts import dense
from moejax.models.t5 import Decoder, Encoder, Memory, T5Config

START, REGISTER = 0, 1


@dataclass(frozen=True, kw_only=True)
class BoltConfig:
    """Names as published in `chronos_config`; `t5` has a vocabulary of two, start and register."""

    t5: T5Config
    context_length: int = 2048
    prediction_length: int = 64
    input_patch_size: int = 16
    input_patch_stride: int = 16
    quantiles: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    use_reg_token: bool = True

    def __post_init__(self):
        for name in ("context_length", "prediction_length", "input_patch_size"):
            require_positive(name, getattr(self, name))
        require_positive("input_patch_stride", self.input_patch_stride)
        inside = all(0 < level < 1 for level in self.quantiles)
        if not self.quantiles or not inside or sorted(set(self.quantiles)) != list(self.quantiles):
            raise ValueError(
                f"quantiles are {self.quantiles}; they must be increasing numbers in (0, 1)"
            )
        if self.use_reg_token and self.t5.vocab_size < 2:
            raise ValueError("use_reg_token needs a vocab_size of at least 2: start and register")

    @classmethod
    def from_fields(cls, t5: T5Config, found: Mapping[str, Any]) -> "BoltConfig":
        """Of `chronos_config`; fields of other kinds are left out."""
        names = set(cls.__dataclass_fields__) - {"t5", "quantiles"}
        values = {name: found[name] for name in names if name in found}
        return cls(t5=t5, quantiles=tuple(found["quantiles"]), **values)

    def to_fields(self) -> dict[str, Any]:
        """`chronos_config`."""
        names = [name for name in self.__dataclass_fields__ if name != "t5"]
        return {name: getattr(self, name) for name in names} | {"quantiles": list(self.quantiles)}


class ResidualBlock(nn.Module):
    """output(relu(hidden(x))) + residual(x), all with biases: [..., I] -> [..., width]."""

    d_ff: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = dense(self, "hidden", x, self.d_ff, "relu")
        return dense(self, "output", y, self.width) + dense(self, "residual", x, self.width)


def normalise(values_BL: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(values less loc over scale, loc, scale [B, 1]) of what is there; NaN stays."""
    there = ~jnp.isnan(values_BL)
    count = jnp.maximum(jnp.sum(there, axis=1, keepdims=True), 1)
    some = jnp.any(there, axis=1, keepdims=True)

    def mean(x):
        return jnp.sum(jnp.where(there, x, 0.0), axis=1, keepdims=True) / count

    loc = jnp.where(some, mean(values_BL), 0.0)
    scale = jnp.where(some, jnp.sqrt(mean(jnp.square(values_BL - loc))), 1.0)
    scale = jnp.where(scale == 0, 1e-5, scale)
    return (values_BL - loc) / scale, loc, scale


class ChronosBolt(nn.Module):
    """values float32 [B, L], NaN where missing -> quantiles float32 [B, Q, H]."""

    config: BoltConfig

    def setup(self):
        config = self.config
        t5 = config.t5
        init = nn.initializers.normal(t5.initializer_factor)
        self.shared = self.param("shared", init, (t5.vocab_size, t5.d_model))
        self.encoder = Encoder(t5)
        self.decoder = Decoder(t5)
        self.input_patch_embedding = ResidualBlock(t5.d_ff, t5.d_model)
        width = len(config.quantiles) * config.prediction_length
        self.output_patch_embedding = ResidualBlock(t5.d_ff, width)

    def __call__(self, values_BL: jax.Array, *, train: bool = False) -> jax.Array:
        x_BSD, mask_BS, loc, scale = self.tokens(values_BL)
        states_BSD = self.encoder(x_BSD, mask_BS, train=train)
        quantiles = self.read(states_BSD, mask_BS, train=train)
        return quantiles * scale[..., None] + loc[..., None]

    def tokens(self, values_BL: jax.Array):
        """(embeddings [B, S, D], mask [B, S], loc, scale [B, 1]) of the last values."""
        values_BL = values_BL.astype(jnp.float32)[:, -self.config.context_length :]
        scaled_BL, loc, scale = normalise(values_BL)
        patches_BNP = self._patches(scaled_BL)
        there_BNP = ~jnp.isnan(patches_BNP)
        patches_BNP = jnp.where(there_BNP, patches_BNP, 0.0)
        mask_BN = jnp.any(there_BNP, axis=-1)
        x_BSD, mask_BS = self.embed(patches_BNP, there_BNP.astype(jnp.float32), mask_BN)
        self.sow("intermediates", "tokens", (x_BSD, mask_BS, loc, scale))
        return x_BSD, mask_BS, loc, scale

    def embed(self, patches_BNP: jax.Array, there_BNP: jax.Array, mask_BN: jax.Array):
        """(embeddings [B, S, D], mask [B, S]) of scaled patches, 0 where `there` is 0; `mask`: a
        patch holds a value. The register comes last.
        """
        features = jnp.concatenate([patches_BNP, there_BNP], axis=-1).astype(self.config.t5.dtype)
        x_BND = self.input_patch_embedding(features)
        if not self.config.use_reg_token:
            return x_BND, mask_BN
        register = self._special(REGISTER, len(x_BND))
        mask_BS = jnp.concatenate([mask_BN, jnp.ones((len(x_BND), 1), bool)], axis=1)
        return jnp.concatenate([x_BND, register], axis=1), mask_BS

    def from_patches(self, patches_BNP: jax.Array, there_BNP: jax.Array, mask_BN: jax.Array):
        """Scaled quantiles [B, Q, H] of what `embed` takes."""
        x_BSD, mask_BS = self.embed(patches_BNP, there_BNP, mask_BN)
        return self.read(self.encoder(x_BSD, mask_BS), mask_BS)

    def read(self, states_BSD: jax.Array, mask_BS: jax.Array, *, train: bool = False) -> jax.Array:
        """Scaled quantiles of the forecast from the encoder's states."""
        memory = Memory(self.decoder.memory(states_BSD), mask_BS[:, None, None, :])
        x_B1D, _ = self.decoder.blocks(
            self._special(START, len(states_BSD)),
            self.decoder.view(1),
            memory.layers,
            memory.mask,
            train=train,
        )
        y_BO = self.output_patch_embedding(self.decoder.finish(x_B1D, train=train)[:, 0])
        shape = len(y_BO), len(self.config.quantiles), self.config.prediction_length
        return y_BO.reshape(shape).astype(jnp.float32)

    def _special(self, index: int, batch: int) -> jax.Array:
        rows = embedding(jnp.full((batch, 1), index, jnp.int32), self.shared)
        return rows.astype(self.config.t5.dtype)

    def _patches(self, values_BL: jax.Array) -> jax.Array:
        """[B, N, P]; NaN is put in front where the length is no multiple of P."""
        size, stride = self.config.input_patch_size, self.config.input_patch_stride
        front = -values_BL.shape[1] % size
        values_BL = jnp.pad(values_BL, ((0, 0), (front, 0)), constant_values=jnp.nan)
        if size == stride:
            return values_BL.reshape(len(values_BL), -1, size)
        starts = range(0, values_BL.shape[1] - size + 1, stride)
        return jnp.stack(
            [lax.slice_in_dim(values_BL, start, start + size, axis=1) for start in starts], axis=1
        )


def quantile_loss(
    quantiles_BQH: jax.Array, target_BH: jax.Array, levels: tuple[float, ...]
) -> jax.Array:
    """Twice the pinball loss: mean over levels, sum over steps, mean over series; NaN is left out.

    Both in scaled units, [B, Q, H] and [B, H].
    """
    target = target_BH[:, None, :]
    there = ~jnp.isnan(target)
    error = jnp.where(there, target, 0.0) - quantiles_BQH
    level = jnp.asarray(levels, jnp.float32)[None, :, None]
    loss = 2 * jnp.abs(error * ((error <= 0).astype(jnp.float32) - level))
    return jnp.mean(jnp.sum(jnp.mean(jnp.where(there, loss, 0.0), axis=1), axis=-1))
