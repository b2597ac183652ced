"""Reset: a fresh start for the routers' columns of experts that hardly any token chooses.

A matter of the training loop, after an optimiser step, inside or outside a compiled one:

    load = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, load, expert_load(sown["moe"]))
    params, optimiser_state, dead = reset_dead_experts(params, optimiser_state, load, key)

Where it is due only now and then, a traced threshold of 0 resets nothing.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moejax.layers.init import FAN_IN

KERNEL = "router_kernel"


class Reset(NamedTuple):
    """params and optimiser_state as given but for the reset columns; `dead`: bool [E] for each
    layer, in the structure of the load.
    """

    params: Any
    optimiser_state: Any
    dead: Any


def reset_dead_experts(
    params: Any,
    optimiser_state: Any,
    load: Any,
    key: jax.Array,
    *,
    threshold: jax.Array | float = 0.1,
) -> Reset:
    """New router columns for the experts whose load is below `threshold`, and zero moments there.

    `load` is `moejax.moe.usage.expert_load` averaged over steps: [E] for each MoE layer, 1 where an
    expert has its even share. `optimiser_state` is any tree that holds trees like `params`, as
    those of optax do. threshold=inf resets every column. ValueError if a layer of `load` has no
    router in `params`.
    """
    dead = jax.tree.map(lambda load_E: load_E < threshold, load)
    leaves = jax.tree_util.tree_leaves_with_path(dead)
    columns = {(*_names(path)[:-1], KERNEL): dead_E for path, dead_E in leaves}
    keys = dict(zip(columns, jax.random.split(key, max(len(columns), 1)), strict=False))
    missing = columns.keys() - {_names(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)}
    if missing:
        names = sorted("/".join(map(str, name)) for name in missing)
        raise ValueError(f"the parameters have no {', '.join(names)}; the load is of another model")

    def fresh(path, leaf: jax.Array) -> jax.Array:
        name = _names(path)
        if name not in columns:
            return leaf
        new = FAN_IN(keys[name], leaf.shape, leaf.dtype)
        return jnp.where(_wide(columns[name], leaf), new, leaf)

    def cleared(path, leaf: jax.Array) -> jax.Array:
        name = _names(path)
        for column, dead_E in columns.items():
            if name[-len(column) :] == column:
                return jnp.where(_wide(dead_E, leaf), 0.0, leaf).astype(leaf.dtype)
        return leaf

    return Reset(
        jax.tree_util.tree_map_with_path(fresh, params),
        jax.tree_util.tree_map_with_path(cleared, optimiser_state),
        dead,
    )


def _names(path: tuple[Any, ...]) -> tuple[Any, ...]:
    """The keys of a path; None for steps that are no keys of a dict."""
    return tuple(getattr(entry, "key", None) for entry in path)


def _wide(dead_E: jax.Array, kernel_DM: jax.Array) -> jax.Array:
    """[1, M] of [E]: free experts are never dead."""
    return jnp.pad(dead_E, (0, kernel_DM.shape[1] - dead_E.shape[0]))[None, :]
