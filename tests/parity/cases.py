"""Every model that climbs the parity ladder: a name and what makes (function, params, inputs)."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from moejax.models.mole import MoLE, MoLEConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.experts import combine_weights, experts_dense
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.routing import router_logits, top_k_router

Case = tuple[Callable[..., Any], Any, dict[str, np.ndarray]]
SMALL = {"seq_len": 40, "pred_len": 12, "num_channels": 5, "num_experts": 3, "kernel_size": 7}


def mole(batch: int = 3, **options) -> Case:
    """A MoLE with random weights of trained size, none of them uniform."""
    config = MoLEConfig(**SMALL | options)
    model = MoLE(config)
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (batch, config.seq_len, config.num_channels)).astype(np.float32)
    mark = rng.uniform(-0.5, 0.5, (batch, config.num_time_features)).astype(np.float32)
    params = model.init(jax.random.key(0), x, mark)["params"]
    params = jax.tree.map(
        lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(np.float32), params
    )
    if config.router == "time":
        return (
            lambda p, x, mark: model.apply({"params": p}, x, mark).y,
            params,
            {"x": x, "mark": mark},
        )
    return lambda p, x: model.apply({"params": p}, x).y, params, {"x": x}


def moe_layer(
    tokens: int = 24, experts: int = 8, k: int = 2, d_model: int = 48, d_ff: int = 40
) -> Case:
    """Router and SwiGLU experts, every expert on every token."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)

    sizes = {"gate": (d_model, d_ff), "up": (d_model, d_ff), "down": (d_ff, d_model)}
    stacked = {name: weight(experts, *size) for name, size in sizes.items()}
    params = {"router": 3 * weight(d_model, experts), "experts": stacked}

    def layer(params, x):
        index, weight, _ = top_k_router(router_logits(x, params["router"]), k=k)
        combine = combine_weights(index, weight, num_experts=experts)
        return experts_dense(x, combine, params["experts"])

    return layer, params, {"x": rng.standard_normal((tokens, d_model)).astype(np.float32)}


def moe_module(routing: RoutingConfig, tokens: tuple[int, int] = (2, 9), **options) -> Case:
    """MoELayer as a user has it; every expert on every token unless the options say otherwise."""
    sizes = {"d_model": 48, "d_ff": 40, "dispatch": "dense"}
    layer = MoELayer(MoEConfig(routing=routing, **sizes | options))
    x = np.random.default_rng(0).standard_normal((*tokens, layer.config.d_model))
    x = x.astype(np.float32)
    return layer.apply, layer.init(jax.random.key(0), x), {"x": x}


def chosen_experts(tokens: int, **options) -> Case:
    """A few tokens, and the chosen experts' matrices alone."""
    return moe_module(TOP_2_OF_8, (1, tokens), dispatch="indexed", **options)


TOP_2_OF_8 = RoutingConfig(num_experts=8, top_k=2)
DEEPSEEK_V3 = RoutingConfig(
    num_experts=16,
    top_k=4,
    strategy="noaux_tc",
    score="sigmoid",
    num_groups=4,
    top_groups=2,
    scale=2.5,
)
FREE = RoutingConfig(num_experts=4, top_k=2, free_experts=("copy", "zero"), normalise=False)
ROUTERS = {
    "time": {"router": "time"},
    "stats": {"router": "stats"},
    "top2": {"router": "stats", "top_k": 2, "router_layers": 3},
    "none": {"router": "none", "num_experts": 1},
}
BASES = {
    "dlinear": {"base": "dlinear"},
    "rlinear": {"base": "rlinear"},
    "rmlp": {"base": "rmlp", "d_model": 24},
}
OTHERS = {
    "mole-individual": {"individual": True},
    "mole-rlinear-individual": {"base": "rlinear", "individual": True},
    "mole-rmlp-no-revin": {"base": "rmlp", "d_model": 24, "revin": False},
    "mole-one-channel": {"num_channels": 1},
    "mole-one-window": {"batch": 1},
    "mole-aligned": {"seq_len": 64, "pred_len": 32, "num_channels": 32, "num_experts": 4},
    "mole-kernel-1": {"kernel_size": 1},
}
CASES: dict[str, Callable[[], Case]] = {
    **{
        f"mole-{base}-{router}": (lambda o=options | chosen: mole(**o))
        for base, options in BASES.items()
        for router, chosen in ROUTERS.items()
    },
    **{name: (lambda o=options: mole(**o)) for name, options in OTHERS.items()},
    "moe-layer-mixtral": lambda: moe_module(TOP_2_OF_8),
    "moe-layer-deepseek-v3": lambda: moe_module(DEEPSEEK_V3, num_shared_experts=1),
    "moe-layer-free-experts": lambda: moe_module(FREE, expert="gelu", use_bias=True),
    **{f"moe-indexed-{n}": (lambda n=n: chosen_experts(n)) for n in (1, 4, 32)},
    "moe-indexed-biases": lambda: chosen_experts(4, expert="gelu", use_bias=True),
    "moe-dense-top2": moe_layer,
    "moe-dense-top3-of-5": lambda: moe_layer(tokens=7, experts=5, k=3),
}
