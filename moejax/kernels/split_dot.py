"""bfloat16 times float32 at float32's accuracy, on matrix units that take bfloat16.

A float32 number is the sum of three bfloat16 numbers, and products of bfloat16 numbers are exact in
float32, so the factor that is float32 is split and its parts lie side by side in one product. A GPU
multiplies float32 itself outside its matrix units. Letters: T rows, D and M widths.
"""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def split_dot(x_TD: jax.Array, kernel_DM: jax.Array) -> jax.Array:
    """x (bfloat16) @ kernel (float32) in float32: [T, M]."""
    return _sum_parts(_dot(x_TD, _parts(kernel_DM, 3), 1, 0), 3)


def _forward(x_TD, kernel_DM):
    return split_dot(x_TD, kernel_DM), (x_TD, kernel_DM)


def _backward(saved, grad_TM):
    x_TD, kernel_DM = saved
    grad_kernel_DM = _sum_parts(_dot(x_TD, _parts(grad_TM, 3), 0, 0), 3)
    # two parts of either are more than the bfloat16 result holds
    left, right = (jnp.split(_parts(leaf, 2), 2, axis=1) for leaf in (grad_TM, kernel_DM))
    lefts = jnp.concatenate([left[0], left[0], left[1]], axis=1)
    rights = jnp.concatenate([right[0], right[1], right[0]], axis=1)
    return _dot(lefts, rights, 1, 1).astype(x_TD.dtype), grad_kernel_DM


split_dot.defvjp(_forward, _backward)


def _parts(x: jax.Array, count: int) -> jax.Array:
    """bfloat16 parts of float32 [A, B], largest first, side by side [A, count * B]."""
    parts = []
    for _ in range(count):
        # reduce_precision, unlike two conversions, is never simplified away
        part = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return jnp.concatenate(parts, axis=1)


def _sum_parts(x: jax.Array, count: int) -> jax.Array:
    """The sum of `count` blocks of columns, the smallest first."""
    blocks = jnp.split(x, count, axis=1)
    total = blocks[-1]
    for block in blocks[-2::-1]:
        total = total + block
    return total


def _dot(left, right, left_axis: int, right_axis: int):
    axes = ((left_axis,), (right_axis,)), ((), ())
    return lax.dot_general(left, right, axes, preferred_element_type=jnp.dtype(jnp.float32))
