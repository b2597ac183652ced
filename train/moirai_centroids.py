"""The second stage of training by centroids: k-means on a dense model's activations.

The centroids of a layer are means of clusters of what its feed-forward part reads in the first
model. That model's weights are the beginning of the second one; where it has one expert a layer
(a dense model), every new expert begins as a copy of it, so that the second model begins as good as
the first. All of it follows from the first run and the seed: a kill repeats it to the same bits.

N tokens, E centroids, D model width.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig
from moejax.moe.balancing import COLLECTION
from train.moirai_data.rows import PackedSeries, cut

TOKENS = 16384
BATCH = 16
ROUNDS = 50


def kmeans(points_ND: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centroids float32 [E, D]: Lloyd's rounds from a k-means++ beginning, until none moves.

    A cluster that loses all of its points begins again at the point farthest from its own
    centroid. ValueError for fewer different points than centroids.
    """
    if len(np.unique(points_ND, axis=0)) < count:
        raise ValueError(
            f"{len(points_ND)} tokens hold fewer than {count} different activations; give more"
            " rows of data, or fewer experts"
        )
    rng = np.random.default_rng(seed)
    centroids_ED = _spread(points_ND, count, rng)
    for _ in range(ROUNDS):
        squares_NE = _squares(points_ND, centroids_ED)
        owner_N = squares_NE.argmin(axis=1)
        counts_E = np.bincount(owner_N, minlength=count)
        sums_ED = np.zeros((count, points_ND.shape[1]))
        np.add.at(sums_ED, owner_N, points_ND)
        new_ED = sums_ED / np.maximum(counts_E, 1)[:, None]
        farthest = np.argsort(squares_NE.min(axis=1))[::-1]
        empty = np.flatnonzero(counts_E == 0)
        new_ED[empty] = points_ND[farthest[: len(empty)]]
        new_ED = new_ED.astype(np.float32)
        if np.array_equal(new_ED, centroids_ED):
            break
        centroids_ED = new_ED
    return centroids_ED


def second_stage(
    config: MoiraiMoEConfig, first: tuple[MoiraiMoEConfig, Any], data: PackedSeries, seed: int
) -> dict[str, Any]:
    """Variables of a model routed by centroids, of a first model and its activations on the data.

    ValueError where the two models do not fit.
    """
    first_config, variables = first
    _check(config, first_config)
    layers = activations(first_config, variables, data, seed)
    centroids = {
        f"layers_{i}": {"moe": {"centroids": jnp.asarray(kmeans(points, config.num_experts, seed))}}
        for i, points in enumerate(layers)
    }
    params = dict(variables["params"])
    for name in centroids:
        layer = dict(params[name])
        experts = jax.tree.map(lambda leaf: _copies(leaf, config), layer["moe"]["experts"])
        moe = {key: leaf for key, leaf in layer["moe"].items() if key != "router_kernel"}
        params[name] = {**layer, "moe": {**moe, "experts": experts}}
    return {"params": params, COLLECTION: centroids}


def activations(
    config: MoiraiMoEConfig, variables: Any, data: PackedSeries, seed: int
) -> list[np.ndarray]:
    """What the feed-forward part of each layer reads, [N, D] of at most TOKENS training tokens."""
    model = MoiraiMoE(config)
    width = data.plans["start"].shape[1]
    rows = data.indices["train"][: max(TOKENS // width, 1)]

    @jax.jit
    def run(arrays: Any, rows_B: jax.Array) -> list[jax.Array]:
        tokens = cut(arrays, rows_B, data.patch_length)
        _, sown = model.apply(variables, tokens, mutable=["intermediates"])
        found: Any = sown["intermediates"]
        return [found[f"layers_{i}"]["ffn_in"][0] for i in range(config.num_layers)]

    arrays, parts = jax.device_put(data.arrays()), []
    for first in range(0, len(rows), BATCH):
        some = rows[first : first + BATCH]
        found = jax.device_get(run(arrays, np.resize(some, BATCH)))
        real = data.plans["sample_id"][some] > 0
        parts.append([np.asarray(one[: len(some)], np.float32)[real] for one in found])
    return [np.concatenate([part[i] for part in parts]) for i in range(config.num_layers)]


def _check(config: MoiraiMoEConfig, first: MoiraiMoEConfig) -> None:
    if config.routing == "learned":
        raise ValueError(
            "training.centroids is set but model.routing is 'learned'; choose 'nearest', or"
            " 'farthest' as in the published models"
        )
    own = {
        name: getattr(config, name)
        for name in ("routing", "num_experts", "top_k", "losses", "dtype", "dispatch")
    }
    if replace(first, **own, dropout=config.dropout) != config or first.num_experts not in (
        1,
        config.num_experts,
    ):
        raise ValueError(
            f"the first model is {first}, the second {config}; all but routing, losses, dtype,"
            " dropout and top_k must be the same, and the first has one expert or as many"
        )


def _copies(leaf: jax.Array, config: MoiraiMoEConfig) -> jax.Array:
    return jnp.repeat(leaf, config.num_experts // leaf.shape[0], axis=0)


def _spread(points_ND: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++: each next centroid a point, by chance of its squared distance to the others."""
    chosen = [points_ND[rng.integers(len(points_ND))]]
    nearest_N = _squares(points_ND, chosen[0][None])[:, 0]
    while len(chosen) < count:
        heap_N = np.cumsum(nearest_N, dtype=np.float64)
        index = int(np.searchsorted(heap_N, rng.random() * heap_N[-1], side="right"))
        chosen.append(points_ND[min(index, len(points_ND) - 1)])
        nearest_N = np.minimum(nearest_N, _squares(points_ND, chosen[-1][None])[:, 0])
    return np.stack(chosen).astype(np.float32)


def _squares(points_ND: np.ndarray, centroids_ED: np.ndarray) -> np.ndarray:
    """Squared distances [N, E]."""
    own = np.square(points_ND).sum(axis=1)[:, None] + np.square(centroids_ED).sum(axis=1)[None]
    return np.maximum(own - 2 * points_ND @ centroids_ED.T, 0)
