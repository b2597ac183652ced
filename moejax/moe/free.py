"""Free experts: outputs of the router that cost no matmul over the hidden width.

"zero" adds nothing, "copy" adds weight * x (LongCat), "constant" adds weight * (a x + b v) with a
learned vector v and (a, b) = softmax(x W) (MoE++).
"""

import jax
import jax.numpy as jnp

from moejax.layers.softmax import softmax
from moejax.moe.assignment import Routing


def free_output(
    x_TD: jax.Array,
    routing: Routing,
    kinds: tuple[str, ...],
    constants: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """What free experts add: [T, D] -> float32 [T, D].

    `constants` are, for the experts of kind "constant" in their order, v [n, D] and W [n, D, 2].
    """
    x_TD = x_TD.astype(jnp.float32)
    y_TD = _weight(routing, kinds, "copy")[:, None] * x_TD
    if constants is None:
        return y_TD
    numbers = [number for number, kind in enumerate(kinds) if kind == "constant"]
    for number, vector_D, kernel_D2 in zip(numbers, *constants, strict=True):
        mix_T2 = softmax(x_TD @ kernel_D2, axis=-1)
        answer_TD = mix_T2[:, :1] * x_TD + mix_T2[:, 1:] * vector_D[None]
        y_TD += _weight_of(routing, number)[:, None] * answer_TD
    return y_TD


def _weight(routing: Routing, kinds: tuple[str, ...], kind: str) -> jax.Array:
    """[T] sum of the weights of all free experts of a kind."""
    numbers = [number for number, name in enumerate(kinds) if name == kind]
    return sum((_weight_of(routing, n) for n in numbers), jnp.zeros(len(routing.index)))


def _weight_of(routing: Routing, number: int) -> jax.Array:
    chosen_Tk = routing.index == routing.num_experts + number
    return jnp.sum(jnp.where(chosen_Tk, routing.kept_weight, 0.0), axis=-1)
