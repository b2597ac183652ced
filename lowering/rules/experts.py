"""Device rules of the stacked experts: all of them on every token, or the chosen ones alone.

Dense: E experts stand side by side along one axis, [T, E * H], so each projection is one matmul and
the sum over experts happens in the accumulator of the last one: no padded expert axis, no
reduction. Chosen: ttnn.sparse_matmul works on the stack [1, E, D, H] where it lies and reads the
matrices of chosen experts only; every one of them sees all tokens, which are one row of tiles.
"""

import numpy as np

from lowering.graph import Known
from lowering.ir import TILE
from lowering.rules.context import DECLINED, Context, Operand, lowers
from lowering.rules.moe import weights_by_expert

# Choices an expert, on average: up to SPARSE few choices meet in one expert, from CROWDED on hardly
# any expert is left out.
SPARSE, CROWDED = 0.5, 2


@lowers("moejax.experts_dense")
def experts_dense(ctx: Context, x, combine, params):
    """Weights are spread over each expert's hidden units by a 0/1 matrix, and act on those."""
    if not all(isinstance(leaf, Known) for leaf in params.values()):
        return DECLINED
    ctx.note("experts side by side: the last matmul sums over hidden units and experts at once")
    experts, hidden, width = params["down"].shape
    h = _hidden(ctx, params, lambda name: _beside(ctx, x, params, name))
    spread = np.repeat(np.eye(experts, dtype=np.float32), hidden, axis=1)
    weights = ctx.emit("matmul", combine, Known(spread, "experts.spread"))
    down = Known(params["down"].numpy().reshape(experts * hidden, width), params["down"].name)
    y = ctx.emit("matmul", ctx.emit("multiply", h, weights), down)
    return _with_down_bias(ctx, y, combine, params)


@lowers("moejax.experts_indexed")
def experts_indexed(ctx: Context, x, index, weight, params):
    """Few choices name their matrices one by one; of more, a mask says which experts have any.

    Experts with biases take the mask always: the bias of a choice is not at hand without a gather.
    With more tokens than a tile has rows, or nearly every expert chosen, all work on every token.
    """
    if not all(isinstance(leaf, Known) for leaf in params.values()):
        return DECLINED
    (tokens, k), experts = index.shape, params["down"].shape[0]
    few = tokens == 1 or tokens * k <= SPARSE * experts
    if few and tokens <= TILE and not any(name.endswith("_bias") for name in params):
        return _named_experts(ctx, x, index, weight, params)
    combine = weights_by_expert(ctx, index, weight, experts)
    if tokens > TILE or tokens * k > CROWDED * experts:
        return experts_dense(ctx, x, combine, params)
    return _masked_experts(ctx, x, combine, params)


def _named_experts(ctx: Context, x, index, weight, params) -> Operand:
    """A slot for each choice: its expert on all tokens, of which one is wanted."""
    ctx.note("sparse_matmul reads the matrices that the indices name; it ignores the mask")
    (tokens, k), experts = index.shape, params["down"].shape[0]
    names = ctx.reshape(ctx.before_typecast(index), (1, 1, 1, tokens * k))
    everyone = np.ones((1, 1, 1, experts), np.float32)
    which = (
        ctx.weight(everyone, "experts.everyone", "bfloat16"),
        ctx.emit("typecast", names, dtype="uint16"),
    )
    slots = _slots(ctx, x, params, which, tokens * k)
    wanted = np.repeat(np.eye(tokens), k, axis=1)
    return _add_up(ctx, slots, weight, np.tile(np.eye(k), tokens), wanted)


def _masked_experts(ctx: Context, x, combine, params) -> Operand:
    """A slot for each expert, with zeros where nobody chose it."""
    ctx.note("sparse_matmul reads the matrices of experts that the mask keeps; the rest is 0")
    tokens, experts = combine.shape
    chosen = ctx.emit("ne", combine, scalar=0.0)
    if tokens > 1:
        chosen = ctx.emit("max", chosen, dim=0, keepdim=True)
    mask = ctx.emit("typecast", ctx.reshape(chosen, (1, 1, 1, experts)), dtype="bfloat16")
    slots = _slots(ctx, x, params, (mask,), experts)
    y = _add_up(ctx, slots, combine, np.eye(experts), np.ones(combine.shape))
    return _with_down_bias(ctx, y, combine, params)


def _slots(ctx: Context, x, params, which: tuple[Operand, ...], count: int) -> Operand:
    """Outputs [1, count, 32, D] without the last bias; rows of missing tokens are made of zeros."""
    tokens, width = x.shape
    if tokens < TILE:
        x = ctx.emit("pad", x, padding=((0, TILE - tokens), (0, 0)), value=0.0)
    rows = ctx.reshape(x, (1, 1, TILE, width))

    def product(a: Operand, name: str, **attrs) -> Operand:
        kernel = params[name]
        stack = Known(kernel.numpy()[None], kernel.name)
        y = ctx.emit("sparse_matmul", a, stack, *which, **attrs)
        return ctx.reshape(y, (1, count, TILE, kernel.shape[2]))

    def project(name: str) -> Operand:
        y, bias = product(rows, name), params.get(f"{name}_bias")
        return y if bias is None else ctx.emit("add", y, Known(bias.numpy()[None, :, None]))

    return product(_hidden(ctx, params, project), "down", is_input_a_sparse=True)


def _add_up(ctx: Context, slots: Operand, weights, pick: np.ndarray, wanted: np.ndarray) -> Operand:
    """Weighted sum over slots [1, N, 32, D] as one product with a row for each token.

    `pick` [M, N] says which column of the weights [T, M] a slot takes, `wanted` [T, N] which slots
    a token takes; in a slot its values are in the row of its own number.
    """
    _, count, rows, width = slots.shape
    tokens = weights.shape[0]
    spread = np.repeat(pick, rows, axis=1).astype(np.float32)
    own = np.repeat(wanted, rows, axis=1) * np.tile(np.eye(rows)[:tokens], (1, count))
    if tokens == 1:
        placed = ctx.emit("matmul", weights, ctx.constant(spread * own.astype(np.float32)))
    else:
        placed = ctx.emit("matmul", weights, ctx.constant(spread))
        placed = ctx.emit("multiply", placed, ctx.constant(own.astype(np.float32)))
    return ctx.emit("matmul", placed, ctx.reshape(slots, (count * rows, width)))


def _hidden(ctx: Context, params: dict[str, Known], project) -> Operand:
    """Hidden values of what `project` makes of the input with the weights of a name."""
    if "gate" not in params:
        return ctx.emit("gelu", project("up"), fast_and_approximate_mode=False)
    return ctx.emit("multiply", ctx.emit("silu", project("gate")), project("up"))


def _beside(ctx: Context, x: Operand, params: dict[str, Known], name: str) -> Operand:
    """x [T, D] times [D, E * H], with the bias in the same program."""
    kernel = params[name].numpy()
    wide = Known(np.moveaxis(kernel, 0, 1).reshape(kernel.shape[1], -1), params[name].name)
    operands = [x, wide]
    if f"{name}_bias" in params:
        bias = params[f"{name}_bias"]
        operands.append(Known(bias.numpy().reshape(1, -1), bias.name))
    return ctx.emit("linear", *operands, core_grid="full")


def _with_down_bias(ctx: Context, y: Operand, combine: Operand, params: dict[str, Known]):
    if "down_bias" not in params:
        return y
    return ctx.emit("add", y, ctx.emit("matmul", combine, params["down_bias"]))
