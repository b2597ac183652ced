"""Use of the experts in every MoE layer of a model, from what the layers have sown.

output, sown = model.apply(variables, ids, mutable=["moe"])
report = expert_report(sown["moe"])
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.moe.usage import Usage

FIELDS = (
    "expert_usage",
    "routed",
    "dropped",
    "imbalance",
    "max_min_ratio",
    "load_entropy",
    "variation",
)


@partial(jax.tree_util.register_dataclass, data_fields=FIELDS, meta_fields=["layers"])
@dataclass(frozen=True)
class ExpertReport:
    """A row for each of the L MoE layers, in their order; `layers` are their paths. No gradients.

    expert_usage, routed [L, E] int32: choices of the real experts that were served, and all of
    them, before any drop; dropped [L] int32: the difference. How uneven the routed ones are, each
    [L]: imbalance, largest over mean, minus 1 (0 is even); max_min_ratio, largest share over
    smallest share + 1e-6 (1 is even, 1e6 with an idle expert and all on one); load_entropy in units
    of log E (1 is even); variation, the squared coefficient of variation (0 is even).
    """

    layers: tuple[str, ...]
    expert_usage: jax.Array
    routed: jax.Array
    dropped: jax.Array
    imbalance: jax.Array
    max_min_ratio: jax.Array
    load_entropy: jax.Array
    variation: jax.Array


def expert_report(sown: Any) -> ExpertReport:
    """The report of a "moe" collection; ValueError if no layer has sown, or if their sizes differ.

    A layer that was called more than once counts all its calls.
    """
    found = sorted(_layers(sown), key=lambda layer: _natural(layer[0]))
    sizes = {calls[0].utilisation.shape[0] for _, calls in found}
    if len(sizes) != 1:
        raise ValueError(
            f"the layers have {sorted(sizes) or 'no'} experts; a report needs MoE layers of one"
            ' size, and mutable=["moe"] in the call that they sow in'
        )
    (size,) = sizes
    routed_LE = jnp.stack([_total([c.wanted for c in calls])[:size] for _, calls in found])
    usage_LE = jnp.stack([_total([c.kept for c in calls])[:size] for _, calls in found])
    share_LE = routed_LE / jnp.maximum(jnp.sum(routed_LE, axis=-1, keepdims=True), 1)
    log_LE = jnp.log(jnp.maximum(share_LE, jnp.finfo(jnp.float32).tiny))
    largest_L = jnp.max(share_LE, axis=-1)
    any_L = largest_L > 0
    return ExpertReport(
        layers=tuple(name for name, _ in found),
        expert_usage=usage_LE,
        routed=routed_LE,
        dropped=jnp.sum(routed_LE - usage_LE, axis=-1),
        imbalance=jnp.where(any_L, largest_L * size - 1, 0.0),
        max_min_ratio=largest_L / (jnp.min(share_LE, axis=-1) + 1e-6),
        load_entropy=-jnp.sum(share_LE * log_LE, axis=-1) / jnp.log(max(size, 2)),
        variation=jnp.where(any_L, jnp.mean(jnp.square(share_LE * size - 1), axis=-1), 0.0),
    )


def _layers(sown: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[Usage, ...]]]:
    for name, inner in sown.items():
        if name == "usage":
            yield "/".join(path), inner
        elif isinstance(inner, dict):
            yield from _layers(inner, (*path, name))


def _total(counts: list[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack(counts), axis=0)


def _natural(name: str) -> list[Any]:
    """Numbers in a name compare as numbers: layers_10 comes behind layers_2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
