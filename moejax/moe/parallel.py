"""Experts and tokens over several devices: sharding rules by axis names, and the exchange.

Every parameter has logical axes ("expert", "embed", "mlp"); rules map them to the axes of a mesh.
Tokens are split over all mesh axes, experts over one of them. Tokens travel to the devices of
their experts, never weights to tokens. EXCHANGES has two ways:

| name   | what travels                                     | for                              |
|--------|--------------------------------------------------|----------------------------------|
| slots  | the slots of the others' experts, all-to-all     | capacity, many devices           |
| tokens | every token once, then one sum for each of them  | no capacity, up to k devices     |

With k choices a token has experts on most of up to k devices, so sending it everywhere once costs
no more than sending each choice, and the others' part of its sum comes back as one row.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.checks import require_choice
from moejax.kernels.grouped import why_not
from moejax.moe.assignment import Routing
from moejax.moe.capacity import queue_order, queue_positions
from moejax.moe.dispatch import dispatch, grouped
from moejax.moe.experts import Params, expert_mlp, narrow, num_experts
from moejax.moe.permute import capacity_slots, collect, spread

AXES = {
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
    "gate_bias": ("mlp",),
    "up_bias": ("mlp",),
    "down_bias": ("embed",),
}
EXPERT_PARALLEL = {"expert": "expert"}
DATA_PARALLEL: dict[str, str] = {}
Exchange = Literal["auto", "slots", "tokens"]
# Choices for a device's experts that there is room for, as a multiple of an even share.
SLACK = 1.25


def device_mesh(data: int, expert: int) -> Mesh:
    """A mesh of data * expert devices with the axes "data" and "expert"."""
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, expert), ("data", "expert"), axis_types=kinds)


def partition_specs(params: Any, rules: Mapping[str, str] = EXPERT_PARALLEL) -> Any:
    """A PartitionSpec for each parameter of a tree that holds MoE layers.

    Parameters of stacked experts go by AXES behind "expert"; everything else is replicated.
    """

    def spec(path: tuple[Any, ...], leaf: Any) -> P:
        names = [getattr(key, "key", None) for key in path]
        if len(names) < 2 or names[-2] != "experts" or names[-1] not in AXES:
            return P()
        axes = ("expert", *AXES[names[-1]])
        # a scan over layers puts axes of its own in front
        return P(*[None] * (leaf.ndim - len(axes)), *(rules.get(axis) for axis in axes))

    return jax.tree_util.tree_map_with_path(spec, params)


def shardings(params: Any, mesh: Mesh, rules: Mapping[str, str] = EXPERT_PARALLEL) -> Any:
    """The same as NamedShardings on a mesh, for jax.device_put or jit's in_shardings."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        partition_specs(params, rules),
        is_leaf=lambda leaf: isinstance(leaf, P),
    )


def expert_parallel(
    mesh: Mesh, expert_axis: str = "expert", exchange: Exchange = "auto"
) -> Callable[[jax.Array, Routing, Params], jax.Array]:
    """A dispatch over the devices of a mesh, for MoELayer's `dispatcher`.

    Tokens are split over all axes of the mesh, experts over `expert_axis`; the numbers of tokens
    and experts must be multiples of those. Capacity must be by sequence, with whole sequences on a
    device. Without it "slots" makes room for all tokens of a device at each expert; "tokens" sends
    no more than the tokens. "auto" is "tokens" for what the kernels of `grouped` can serve on up
    to k devices, else "slots".
    """
    require_choice("exchange", exchange, ("auto", *EXCHANGES))
    everywhere = tuple(mesh.axis_names)
    num_devices = mesh.size

    def run(x_TD: jax.Array, routing: Routing, params: Params) -> jax.Array:
        _check(x_TD, routing, mesh, expert_axis)
        groups = routing.num_groups // num_devices if routing.capacity else 1
        name = exchange
        if name == "auto":
            fits = routing.capacity is None and why_not(x_TD, params) is None
            few = mesh.shape[expert_axis] <= routing.index.shape[1]
            name = "tokens" if fits and few else "slots"

        def local(x_TD, routing, params):
            return EXCHANGES[name](x_TD, replace(routing, num_groups=groups), params, expert_axis)

        rows = jax.tree.map(lambda _: P(everywhere), routing)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P(everywhere), rows, jax.tree.map(lambda _: P(expert_axis), params)),
            out_specs=P(everywhere),
            # kernels don't say over which axes their results vary
            check_vma=name != "tokens",
        )(x_TD, routing, params)

    return run


def exchange_tokens(x_TD: jax.Array, routing: Routing, params: Params, axis: str) -> jax.Array:
    """One device's part: its tokens and the routing for them, and the weights of its experts.

    Inside shard_map. [T, D] -> [T, D]: everyone has all tokens of the axis, sums the outputs of
    its own experts, and gets the others' sums for its own tokens.
    """
    held = num_experts(params)
    first = lax.axis_index(axis) * held

    def everyone(leaf):
        return lax.all_gather(leaf, axis, tiled=True)

    index_Tk = everyone(routing.index) - first
    mine_Tk = (index_Tk >= 0) & (index_Tk < held)
    # no dispatch reads logits or scores: they stay those of this device
    routing = replace(
        routing,
        index=jnp.where(mine_Tk, index_Tk, held),
        weight=everyone(routing.weight),
        keep=everyone(routing.keep) & mine_Tk,
        valid=everyone(routing.valid),
        num_experts=held,
        position=None,
        num_groups=1,
        order=None,
    )
    x_TD = everyone(x_TD)
    if why_not(x_TD, params) is None:
        limit = int(SLACK * routing.index.size / lax.axis_size(axis))
        y_TD = narrow(grouped(x_TD, routing, params, limit), x_TD.dtype)
    else:
        y_TD = dispatch(x_TD, routing, params)
    return lax.psum_scatter(y_TD, axis, tiled=True)


def exchange_slots(x_TD: jax.Array, routing: Routing, params: Params, axis: str) -> jax.Array:
    """The same by slots. [T, D] -> [T, D]: slots for all E experts are filled here, swapped so that
    each device has everyone's rows for its own experts, and swapped back.
    """
    position_Tk = routing.position
    if position_Tk is None:
        position_Tk = queue_positions(routing, queue_order(routing, "token_major"))
    slots = capacity_slots(routing, position_Tk)
    x_ECD = spread(x_TD, slots).reshape(routing.num_experts, -1, x_TD.shape[1])
    mine = lax.all_to_all(x_ECD, axis, split_axis=0, concat_axis=1, tiled=True)
    y_ECD = narrow(expert_mlp(mine, params), x_TD.dtype)
    back = lax.all_to_all(y_ECD, axis, split_axis=1, concat_axis=0, tiled=True)
    y_ND = back.reshape(-1, x_TD.shape[1])
    return narrow(collect(y_ND, routing.kept_weight, slots), x_TD.dtype)


EXCHANGES: dict[str, Callable[[jax.Array, Routing, Params, str], jax.Array]] = {
    "slots": exchange_slots,
    "tokens": exchange_tokens,
}


def _check(x_TD: jax.Array, routing: Routing, mesh: Mesh, expert_axis: str) -> None:
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"the axes of the mesh are {mesh.axis_types}; make it with axis type Auto, as"
            " device_mesh does"
        )
    shares = mesh.shape[expert_axis]
    if routing.num_experts % shares:
        raise ValueError(
            f"{routing.num_experts} experts cannot be split evenly over {shares} devices"
        )
    if len(x_TD) % mesh.size:
        raise ValueError(f"{len(x_TD)} tokens cannot be split evenly over {mesh.size} devices")
    if routing.capacity is not None and routing.num_groups % mesh.size:
        raise ValueError(
            f"capacity is counted in {routing.num_groups} groups of tokens, which cannot be split"
            f" evenly over {mesh.size} devices; use CapacityConfig(scope='sequence') and a batch"
            " that is a multiple of the devices"
        )
