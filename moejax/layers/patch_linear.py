"""Linear maps of patches, with weights of their own for each size that a patch may have.

P cells of the largest patch, K sizes, N outputs. A token whose size is not among them gives 0.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moejax.layers.init import uniform_fan_in
from moejax.layers.linear import linear


class PatchInput(nn.Module):
    """The cells of a patch to D features; cells beyond the token's patch size do not count.

    Shapes: x [B, T, P], patch_size [B, T] -> [B, T, D]; params kernel [K, P, D], bias [K, D].
    """

    patch_sizes: tuple[int, ...]
    d_model: int

    @nn.compact
    def __call__(self, x_BTP: jax.Array, patch_size_BT: jax.Array) -> jax.Array:
        sizes, width = self.patch_sizes, (self.d_model,)
        shape = len(sizes), x_BTP.shape[-1], self.d_model
        kernel = self.param("kernel", _by_size(sizes), shape)
        bias = self.param("bias", _by_size(sizes), (len(sizes), *width))
        return choose_by_size(x_BTP, patch_size_BT, sizes, cut_rows(kernel, sizes), bias)


class PatchFeatures(nn.Module):
    """D features to D features: [B, T, D] -> [B, T, D]; params kernel [K, D, D], bias [K, D]."""

    patch_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, patch_size_BT: jax.Array) -> jax.Array:
        count, width = len(self.patch_sizes), x_BTD.shape[-1]
        init = uniform_fan_in(width**2)  # as published: +-1/D, not +-1/sqrt(D)
        kernel = self.param("kernel", init, (count, width, width))
        bias = self.param("bias", init, (count, width))
        return choose_by_size(x_BTD, patch_size_BT, self.patch_sizes, kernel, bias)


class PatchHead(nn.Module):
    """D features to the raw parameters of the distribution of every cell of a patch.

    `dims`: name -> numbers N for a cell. Shapes: [B, T, D] -> [B, T, sum of N * P], one name after
    the other, number-major (`split_by_name`); params name_kernel [K, D, N * P], name_bias [K, N *
    P].

    As published, a token of a size p below P has weights in the first N * p outputs only and the
    bias in all. `cells` then takes output n * P + c for number n of cell c. So for a patch smaller
    than the largest, numbers after the first hold little but the bias.
    """

    patch_sizes: tuple[int, ...]
    dims: Mapping[str, int]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, patch_size_BT: jax.Array) -> jax.Array:
        sizes, largest, width = self.patch_sizes, max(self.patch_sizes), x_BTD.shape[-1]
        init = uniform_fan_in(width)
        kernels, biases = [], []
        for name, numbers in self.dims.items():
            outputs = numbers * largest
            kernel = self.param(f"{name}_kernel", init, (len(sizes), width, outputs))
            kernels.append(cut_columns(kernel, [numbers * size for size in sizes]))
            biases.append(self.param(f"{name}_bias", init, (len(sizes), outputs)))
        # one matmul for all parameters
        kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in (kernels, biases))
        return choose_by_size(x_BTD, patch_size_BT, sizes, kernel, bias)


def split_by_name(y: jax.Array, dims: Mapping[str, int]) -> dict[str, jax.Array]:
    """A head's outputs by name, [..., N * P] each."""
    largest = y.shape[-1] // sum(dims.values())
    ends = np.cumsum([numbers * largest for numbers in dims.values()])[:-1]
    return dict(zip(dims, jnp.split(y, ends.tolist(), axis=-1), strict=True))


def cells(y: jax.Array, numbers: int) -> jax.Array:
    """[..., N * P] of a head -> [..., P, N]."""
    return jnp.swapaxes(y.reshape(*y.shape[:-1], numbers, -1), -1, -2)


def choose_by_size(
    x: jax.Array,
    patch_size_BT: jax.Array,
    sizes: tuple[int, ...],
    kernel_KIO: jax.Array,
    bias_KO: jax.Array,
) -> jax.Array:
    """x @ kernel[k] + bias[k] for a token of the k-th size, 0 for one of another size."""
    y = jnp.zeros((), x.dtype)
    for k, size in enumerate(sizes):
        of_size = linear(x, kernel_KIO[k].astype(x.dtype), bias_KO[k].astype(x.dtype))
        y = jnp.where(patch_size_BT[..., None] == size, of_size, y)
    return y


def cut_rows(kernel_KIO: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    """0 in the rows of the k-th matrix from counts[k] on."""
    return _cut(kernel_KIO, counts, axis=1)


def cut_columns(kernel_KIO: jax.Array, counts: list[int]) -> jax.Array:
    """0 in the columns of the k-th matrix from counts[k] on."""
    return _cut(kernel_KIO, counts, axis=2)


def _cut(kernel_KIO: jax.Array, counts, axis: int) -> jax.Array:
    length = kernel_KIO.shape[axis]
    if all(count == length for count in counts):
        return kernel_KIO
    keep_KL = np.arange(length)[None, :] < np.asarray(counts)[:, None]
    return jnp.where(np.expand_dims(keep_KL, 3 - axis), kernel_KIO, 0.0)


def _by_size(sizes: tuple[int, ...]):
    """Uniform in +-1/sqrt(size) for the matrix or row of each size."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        keys = jax.random.split(key, len(sizes))
        parts = [
            uniform_fan_in(size)(one, shape[1:], dtype)
            for one, size in zip(keys, sizes, strict=True)
        ]
        return jnp.stack(parts)

    return init
