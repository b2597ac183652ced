"""Where the parameters of a language model lie on a mesh of devices: one table of logical axes.

Everything that holds arrays under the parameters' paths goes by it: parameters, gradients, moments
of an optimiser. XLA adds the communication (jax.sharding; no code of the model knows of devices).
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.moe.parallel import AXES as EXPERT_AXES

DATA, EXPERT, MODEL = "data", "expert", "model"
Axes = tuple[str | None, ...]

# Parameter -> logical axes. What is not listed lies whole on every device.
ATTENTION: dict[str, Axes] = {
    "query": ("embed", "heads"),
    "key": ("embed", "heads"),
    "value": ("embed", "heads"),
    "output": ("heads", "embed"),
    "query_bias": ("heads",),
    "key_bias": ("heads",),
    "value_bias": ("heads",),
    "query_up": (None, "heads"),
    "latent_up": (None, "heads"),
}
LOGICAL: dict[str, Axes] = {
    "embedding": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    **{f"attention/{name}": axes for name, axes in ATTENTION.items()},
    **{f"mlp/{name}": axes for name, axes in EXPERT_AXES.items()},
    **{f"shared/{name}": axes for name, axes in EXPERT_AXES.items()},
    **{f"experts/{name}": ("expert", *axes) for name, axes in EXPERT_AXES.items()},
}
# Logical axis -> axis of the mesh: experts over one, what is inside a layer over another.
RULES: Mapping[str, str] = {"expert": EXPERT, "mlp": MODEL, "heads": MODEL, "vocab": MODEL}


def lm_mesh(data: int = 1, expert: int = 1, model: int = 1) -> Mesh:
    """A mesh with the axes "data", "expert" and "model"; ValueError for too few devices."""
    needed, found = data * expert * model, len(jax.devices())
    if needed > found:
        raise ValueError(
            f"a mesh of {data} x {expert} x {model} needs {needed} devices; there are {found} (on a"
            f" CPU, set XLA_FLAGS=--xla_force_host_platform_device_count={needed})"
        )
    kinds = (AxisType.Auto,) * 3
    shape = (data, expert, model)
    return jax.make_mesh(
        shape, (DATA, EXPERT, MODEL), axis_types=kinds, devices=jax.devices()[:needed]
    )


def lm_shardings(tree: Any, mesh: Mesh, rules: Mapping[str, str] = RULES) -> Any:
    """A NamedSharding for every leaf of a tree that holds parameters under their paths.

    An axis that the mesh does not divide evenly lies whole on every device of that mesh axis.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [key.key for key in path if isinstance(getattr(key, "key", None), str)]
        axes = LOGICAL.get("/".join(names[-2:])) or LOGICAL.get(names[-1] if names else "")
        if axes is None or len(axes) != leaf.ndim:
            return NamedSharding(mesh, P())
        places = (rules.get(axis) if axis else None for axis in axes)
        fits = (
            one if one and size % mesh.shape[one] == 0 else None
            for one, size in zip(places, leaf.shape, strict=True)
        )
        return NamedSharding(mesh, P(*fits))

    return jax.tree_util.tree_map_with_path(place, tree)
