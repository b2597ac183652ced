"""Experts on rows sorted by expert, without capacity: loops over blocks of rows, made for CPUs.

Rows of one expert are next to each other. Each expert that has any runs on full blocks of falling
sizes, then on a small one for the rest. The last one may reach into the rows of the next expert,
which then overwrites them, so no row is padding. Weights of idle experts are not read. The
gradient is written by hand: it walks the same blocks and sums the gradients of an expert's weights
in one place, within sight of the cache. Letters as in assignment.py, and N rows, B rows of a block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moejax.moe.experts import (
    Params,
    combine_activations,
    expert_mlp,
    narrow,
    pre_activations,
    project,
)
from moejax.moe.stream import can_stream, stream_mlp

# (rows of a block, rows that must be left to use it): many rows go in blocks that fill the cache,
# a few in blocks that cover them, straight from the stacked weights (stream.py).
Sizes = tuple[tuple[int, int], ...]
LARGE_BLOCKS: Sizes = ((512, 449), (128, 65), (64, 33), (32, 1))
SMALL_BLOCKS: Sizes = ((16, 9), (8, 5), (4, 3), (2, 2), (1, 1))
ENOUGH_ROWS = 64


def block_sizes(num_rows: int, num_experts: int) -> Sizes:
    """Falling sizes of blocks for this many rows."""
    return LARGE_BLOCKS if num_rows >= ENOUGH_ROWS * num_experts else SMALL_BLOCKS


def spare_rows(sizes: Sizes) -> int:
    """Rows that the blocks may need behind those of the last expert."""
    return max(size for size, _ in sizes)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def sorted_experts(x_ND: jax.Array, count_E: jax.Array, params: Params, sizes: Sizes) -> jax.Array:
    """Each expert's MLP on its own rows: [N, D] -> float32 [N, D].

    The first count[0] rows are expert 0's and so on; `spare_rows(sizes)` rows or more follow
    the last of them. What the result holds there is not defined. Reverse-mode gradients only.
    """
    streams = sizes == SMALL_BLOCKS and can_stream(params)

    def visit(index, start, end, y_ND):
        run = partial(stream_mlp, params=params, index=index)
        if not streams:
            run = partial(expert_mlp, params=_expert(params, index))

        def block(start, size, y_ND):
            return _write(y_ND, start, run(_read(x_ND, start, size)))

        return _blocks(sizes, start, end, block, y_ND)

    return _walk(count_E, visit, jnp.zeros(x_ND.shape, jnp.float32))


def _forward(x_ND: jax.Array, count_E: jax.Array, params: Params, sizes: Sizes):
    """The same, keeping what every row has before its activation."""
    pre = jax.eval_shape(pre_activations, x_ND, jax.tree.map(lambda leaf: leaf[0], params))
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, x_ND.dtype), pre)

    def block(start, size, carry, expert):
        pre = pre_activations(_read(x_ND, start, size), expert)
        hidden = narrow(combine_activations(pre), x_ND.dtype)
        pre = jax.tree.map(lambda leaf: narrow(leaf, x_ND.dtype), pre)
        return jax.tree.map(
            lambda buffer, rows: _write(buffer, start, rows),
            carry,
            (project(hidden, expert, "down"), pre),
        )

    def visit(index, start, end, carry):
        body = partial(block, expert=_expert(params, index))
        return _blocks(sizes, start, end, body, carry)

    y_ND, pre = _walk(count_E, visit, (jnp.zeros(x_ND.shape, jnp.float32), empty))
    return y_ND, (x_ND, count_E, params, pre)


def _backward(sizes: Sizes, saved: Any, grad_ND: jax.Array):
    x_ND, count_E, params, pre = saved

    def block(start, size, carry, expert, end):
        grad_x_ND, total = carry
        live_B1 = (start + jnp.arange(size))[:, None] < end
        grad_BD = jnp.where(live_B1, _read(grad_ND, start, size), 0.0)
        pre_B = jax.tree.map(lambda leaf: _read(leaf, start, size).astype(jnp.float32), pre)
        grad_x_BD, grads = _block_gradient(_read(x_ND, start, size), pre_B, expert, grad_BD)
        total = jax.tree.map(lambda sum_, grad: sum_ + grad.astype(sum_.dtype), total, grads)
        return _write(grad_x_ND, start, grad_x_BD), total

    def visit(index, start, end, carry):
        grad_x_ND, grads = carry
        expert = _expert(params, index)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), expert)
        body = partial(block, expert=expert, end=end)
        grad_x_ND, total = _blocks(sizes, start, end, body, (grad_x_ND, zero))
        put = partial(lax.dynamic_update_index_in_dim, index=index, axis=0)
        grads = jax.tree.map(lambda all_, one: put(all_, one.astype(all_.dtype)), grads, total)
        return grad_x_ND, grads

    start = jnp.zeros_like(x_ND), jax.tree.map(jnp.zeros_like, params)
    grad_x_ND, grads = _walk(count_E, visit, start)
    return grad_x_ND, None, grads


sorted_experts.defvjp(_forward, _backward)


def _block_gradient(x_BD: jax.Array, pre: Any, expert: Params, grad_BD: jax.Array):
    """Gradients of one expert's input rows and weights, from its saved pre-activations."""
    inputs = {name: leaf for name, leaf in expert.items() if not name.startswith("down")}
    output = {name: leaf for name, leaf in expert.items() if name.startswith("down")}
    hidden, pull_hidden = jax.vjp(lambda pre: narrow(combine_activations(pre), x_BD.dtype), pre)
    # the values of these two are not used, so only their gradients are computed
    _, pull_output = jax.vjp(lambda hidden, output: project(hidden, output, "down"), hidden, output)
    _, pull_inputs = jax.vjp(pre_activations, x_BD, inputs)
    grad_hidden, grad_output = pull_output(grad_BD)
    (grad_pre,) = pull_hidden(grad_hidden)
    grad_x_BD, grad_inputs = pull_inputs(grad_pre)
    return grad_x_BD, grad_inputs | grad_output


def _walk(count_E: jax.Array, visit: Callable[..., Any], carry: Any) -> Any:
    """visit(index, start, end, carry) for every expert with rows, in order."""
    end_E = jnp.cumsum(count_E)
    busy_E = jnp.argsort(count_E == 0, stable=True)

    def step(i, carry):
        index = busy_E[i]
        return visit(index, end_E[index] - count_E[index], end_E[index], carry)

    return lax.fori_loop(0, jnp.sum(count_E > 0), step, carry)


def _blocks(sizes: Sizes, start, end, block: Callable[..., Any], carry: Any) -> Any:
    """block(start, size, carry) on the rows from start to end; only the last may reach beyond."""
    for size, needed in sizes:
        start, carry = lax.while_loop(
            lambda state, needed=needed: end - state[0] >= needed,
            lambda state, size=size: (state[0] + size, block(state[0], size, state[1])),
            (start, carry),
        )
    return carry


def _expert(params: Params, index) -> Params:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), params)


def _read(buffer: jax.Array, start, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(buffer, start, size)


def _write(buffer: jax.Array, start, rows: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), start, 0)
