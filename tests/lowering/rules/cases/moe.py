"""The regions of the MoE layer: router, matrix of weights, experts."""

import jax.numpy as jnp
import numpy as np

from moejax.moe.experts import combine_weights, experts_dense, experts_indexed
from moejax.moe.routing import finite_logits, router_logits, top_k_router
from tests.lowering.rules.cases.base import Case, grid, integers, normal

LOGITS = normal(6, 10)
X = normal(6, 12)


def params(gated: bool, bias: bool, experts: int = 3) -> dict:
    """Stacked experts of width 12 with 20 hidden units."""
    sizes = {"up": (12, 20), "down": (20, 12)} | ({"gate": (12, 20)} if gated else {})
    kernels = {
        name: 0.3 * normal(experts, *size, seed=i) for i, (name, size) in enumerate(sizes.items())
    }
    biases = {f"{name}_bias": normal(experts, size[-1]) for name, size in sizes.items()}
    return kernels | (biases if bias else {})


def chosen(tokens: int, k: int, experts: int) -> tuple:
    """x, k different experts of each token, and their weights, of either sign and some 0."""
    order = np.argsort(normal(tokens, experts, seed=2), axis=1)[:, :k]
    weight = np.round(normal(tokens, k, seed=3) * 2) / 2
    return normal(tokens, 12, seed=4), order.astype(np.int32), weight


# tokens, k and experts of each form of the chosen experts, with its number of tokens at the limits
INDEXED = {
    "one token, its matrices by name": (1, 2, 5),
    "one token, every expert": (1, 3, 3),
    "named": (2, 2, 8),
    "masked": (3, 2, 8),
    "masked, a whole tile": (32, 1, 16),
    "all on all, crowded": (9, 2, 8),
    "all on all, more than a tile": (33, 1, 40),
}


def routed(x, k: int = 2):
    """Router and experts together, as a layer uses them."""
    index, weight, _ = top_k_router(router_logits(x, normal(12, 3, seed=5)), k=k)
    return experts_dense(x, combine_weights(index, weight, num_experts=3), params(True, False))


CASES = [
    Case("moejax.finite_logits", "finite", finite_logits, (LOGITS,)),
    *(
        Case("moejax.top_k_router", f"{k} of 10", lambda x, k=k: top_k_router(x, k=k), (LOGITS,))
        for k in (1, 2, 10)
    ),
    Case("moejax.top_k_router", "scaled", lambda x: top_k_router(x, k=2, scale=2.5), (LOGITS,)),
    Case(
        "moejax.top_k_router",
        "not normalised",
        lambda x: top_k_router(x, k=3, normalise=False),
        (LOGITS,),
    ),
    Case(
        "moejax.top_k_router",
        "sigmoid, bias, groups",
        lambda x: top_k_router(
            x, normal(10), k=3, score="sigmoid", num_groups=5, top_groups=3, group_best=2
        ),
        (LOGITS,),
    ),
    *(
        Case(
            "moejax.top_k_router",
            f"{score}, groups of {size}, {name}",
            lambda x, o=options, g=10 // size, s=score: top_k_router(
                x, k=3, score=s, num_groups=g, top_groups=2, **o
            ),
            (grid(24, 10, seed=size),),
        )
        for name, options in {
            "best": {},
            "two best, not normalised": {"group_best": 2, "normalise": False},
        }.items()
        for score in ("softmax", "sigmoid", "identity")
        for size in (2, 5)
    ),
    Case(
        "moejax.top_k_router",
        "groups and free outputs",
        lambda x: top_k_router(x, k=3, num_groups=4, top_groups=2, num_free=2, scale=2.5),
        (LOGITS,),
    ),
    Case(
        "moejax.top_k_router",
        "bias alone",
        lambda x: top_k_router(x, normal(10), k=3, score="sigmoid", normalise=False),
        (LOGITS,),
    ),
    Case(
        "moejax.top_k_router",
        "router of 8 in one piece",
        lambda x: top_k_router(router_logits(x, normal(12, 8)) + normal(1, 8), k=2)[1],
        (X,),
    ),
    Case(
        "moejax.combine_weights",
        "2 of 7",
        lambda i, w: combine_weights(i, w, num_experts=7),
        (integers(6, 2, low=0, high=7), jnp.abs(normal(6, 2))),
    ),
    Case(
        "moejax.combine_weights",
        "known index",
        lambda w: combine_weights(integers(6, 2, low=0, high=7), w, num_experts=7),
        (normal(6, 2),),
    ),
    *(
        Case(
            "moejax.experts_dense",
            f"gated {gated} bias {bias}",
            lambda x, w, g=gated, b=bias: experts_dense(x, w, params(g, b)),
            (X, jnp.abs(normal(6, 3))),
            float32=0.006,  # three products, one after the other
            bfloat16=0.015,
        )
        for gated in (True, False)
        for bias in (True, False)
    ),
    *(
        Case(
            "moejax.experts_indexed",
            name,
            lambda x, i, w, n=size[2]: experts_indexed(x, i, w, params(True, False, n)),
            chosen(*size),
            float32=0.006,
            bfloat16=0.015,
        )
        for name, size in INDEXED.items()
    ),
    *(
        Case(
            "moejax.experts_indexed",
            f"gated {gated} bias {bias}, {tokens} tokens",
            lambda x, i, w, g=gated, b=bias: experts_indexed(x, i, w, params(g, b, 8)),
            chosen(tokens, 2, 8),
            float32=0.006,
            bfloat16=0.015,
        )
        for tokens, gated, bias in ((1, False, False), (1, True, True), (4, False, True))
    ),
    Case("function", "top-2 layer", routed, (X,), float32=0.006, bfloat16=0.015),
]
