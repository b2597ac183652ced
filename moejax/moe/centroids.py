"""A router that learns nothing: experts have centroids, and distance to them decides.

The logits of a token are its Euclidean distances to the E centroids ("farthest": the greatest win)
or minus those ("nearest"). Centroids are found outside of training, by k-means for example, and
are kept in the collection "router_state", out of the reach of gradients and weight decay.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from moejax.regions import region

Centroids = Literal["farthest", "nearest"]
CENTROIDS = ("farthest", "nearest")
# The least square of a distance: below all that matters, yet its root has a gradient.
LEAST_SQUARE = 1e-30


@region("moejax.centroid_distance", float32=True)
def centroid_distance(x_TD: jax.Array, centroid_ED: jax.Array) -> jax.Array:
    """|x - c| as sqrt(|x|^2 + |c|^2 - 2 x.c), in float32 whatever the inputs: [T, D] -> [T, E].

    Differences of large distances decide about weights, which fewer bits would lose.
    """
    x_TD, centroid_ED = x_TD.astype(jnp.float32), centroid_ED.astype(jnp.float32)
    dot_TE = jnp.dot(x_TD, centroid_ED.T, precision=lax.Precision.HIGHEST)
    square_T1 = jnp.sum(jnp.square(x_TD), axis=-1, keepdims=True)
    square_1E = jnp.sum(jnp.square(centroid_ED), axis=-1)[None, :]
    return jnp.sqrt(jnp.maximum(square_T1 + square_1E - 2 * dot_TE, LEAST_SQUARE))


def centroid_logits(x_TD: jax.Array, centroid_ED: jax.Array, kind: Centroids) -> jax.Array:
    """[T, D] -> [T, E] float32; the greatest are chosen. No gradient reaches the centroids."""
    distance_TE = centroid_distance(x_TD, lax.stop_gradient(centroid_ED))
    return distance_TE if kind == "farthest" else -distance_TE
