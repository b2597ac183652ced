"""What models of packed series are made of: their scaler, routing by centroids, picked tokens."""

import numpy as np

from moejax.layers.packed_attention import pick
from moejax.layers.packed_scaler import packed_scale, standardise
from moejax.layers.rope import RopeConfig, rope, rope_rows
from moejax.moe.centroids import centroid_distance
from moejax.moe.routing import top_k_router
from tests.lowering.rules.cases.base import Case, booleans, integers, normal, positive

# series far from 0: their spread is lost where sums are not float32
TARGET = 1e3 + normal(2, 7, 5)
SAMPLE, VARIATE = np.array([[0, 1, 1, 1, 1, 2, 2]] * 2, np.int32), integers(2, 7, low=0, high=2)
NONE = np.zeros((2, 7, 5), bool)
READ = integers(2, 3, low=0, high=7)
DISTANCES = 27 + normal(6, 10) / 4
COS, SIN = rope_rows(RopeConfig(interleaved=True), 32, integers(2, 7, low=0, high=40))


def _scale(name: str, counted: np.ndarray) -> Case:
    # 1e-6 of the offset is all that float32 can do for the deviation
    inputs = (TARGET, counted, SAMPLE, VARIATE)
    tight = {"float32": 1e-4, "bfloat16": 1e-4, "bfloat8_b": 1e-4}
    return Case("moejax.packed_scale", name, packed_scale, inputs, **tight)


CASES = [
    _scale("some cells missing", booleans(2, 7, 5)),
    _scale("no cell", NONE),
    Case(
        "moejax.standardise",
        "far from 0",
        standardise,
        (TARGET, TARGET[..., :1] + 1, positive(2, 7, 1)),
        bfloat16=1e-6,
        bfloat8_b=1e-6,
    ),
    *(
        Case(
            "moejax.centroid_distance",
            f"{experts} centroids",
            lambda x, n=experts: centroid_distance(x, normal(n, 40, seed=1)),
            (normal(9, 40),),
            bfloat16=3e-3,
            bfloat8_b=3e-3,
        )
        for experts in (32, 5)
    ),
    Case(
        "moejax.centroid_distance",
        "computed centroids",
        centroid_distance,
        (normal(9, 40), normal(5, 40, seed=1)),
    ),
    Case(
        "moejax.top_k_router",
        "large logits as they are",
        lambda x: top_k_router(x, k=2, score="identity"),
        (DISTANCES,),
        bfloat16=2e-3,
        bfloat8_b=2e-3,
    ),
    Case(
        "moejax.rope",
        "half of each head, computed tables",
        lambda x, c, s: rope(x, c, s, interleaved=True),
        (normal(2, 3, 7, 64), COS[:, None], SIN[:, None]),
    ),
    Case("gather", "picked rows", pick, (normal(2, 7, 6), READ)),
    Case("gather", "picked rows of rank 4", lambda x, i: pick(x, i, 2), (normal(2, 1, 7, 6), READ)),
    Case(
        "gather", "picked rows of all heads", lambda x, i: pick(x, i, 2), (normal(2, 4, 7, 6), READ)
    ),
    Case("gather", "picked truth values", pick, (booleans(2, 7, 6), READ)),
    Case("gather", "picked integers", pick, (integers(2, 7, 6), READ)),
    Case("gather", "picked scalars", pick, (integers(2, 7), READ)),
    Case("gather", "picked from equals", lambda i: pick(np.full((2, 7), 3, np.int32), i), (READ,)),
]
