"""Cases that show the fused router equal to the plain one, and fast: for tests and benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moejax.kernels.router import Implementation, Order, fused_route
from moejax.moe.assignment import Routing
from moejax.moe.capacity import queue_order, queue_positions
from moejax.moe.config import RoutingConfig


@dataclass(frozen=True, kw_only=True)
class RouterCase:
    """T tokens to route; `on_grid` logits are multiples of 1/16: many ties, no near ties."""

    name: str
    config: RoutingConfig
    tokens: int
    order: Order = "choice_major"
    groups: int = 1
    masked: bool = False
    with_nan: bool = False
    on_grid: bool = False
    dtype: str = "float32"

    def inputs(self, seed: int = 0) -> dict[str, jax.Array | None]:
        """logits_TM, and bias_M and mask_T where the case has them."""
        rng = np.random.default_rng(seed)
        outputs = self.config.num_outputs
        logits = 2 * rng.normal(size=(self.tokens, outputs)).astype(np.float32)
        if self.on_grid:
            logits = np.round(logits * 16) / 16
        if self.with_nan:
            logits[:: max(self.tokens // 7, 1), outputs // 2] = np.nan
        bias = rng.normal(size=outputs).astype(np.float32)
        mask = rng.random(self.tokens) > 0.3
        return {
            "logits_TM": jnp.asarray(logits, self.dtype),
            "bias_M": jnp.asarray(bias) if self.config.has_bias else None,
            "mask_T": jnp.asarray(mask) if self.masked else None,
        }

    def route(
        self, inputs: dict[str, jax.Array | None], implementation: Implementation | None
    ) -> tuple[Routing, jax.Array]:
        """`fused_route` of the inputs."""
        return fused_route(
            config=self.config,
            num_groups=self.groups,
            order=self.order,
            implementation=implementation,
            **inputs,  # pyright: ignore[reportArgumentType]
        )


def benchmark_cases() -> list[RouterCase]:
    """The shapes whose speed is promised, in both orders of queueing, then larger routers."""
    deepseek = {"strategy": "noaux_tc", "score": "sigmoid", "scale": 2.5}
    configs = {
        "T16384_E64_k8": (16384, RoutingConfig(num_experts=64, top_k=8)),
        "T65536_E256_k8": (65536, RoutingConfig(num_experts=256, top_k=8)),
        "T65536_E256_k8_groups": (
            65536,
            RoutingConfig(num_experts=256, top_k=8, num_groups=8, top_groups=4, **deepseek),
        ),
        "T16384_E8_k2": (16384, RoutingConfig(num_experts=8, top_k=2)),
    }
    return [
        RouterCase(name=f"{name}_{order}", config=config, tokens=tokens, order=order)
        for name, (tokens, config) in configs.items()
        for order in ("choice_major", "token_major")
    ]


def equality_cases(tokens: int) -> list[RouterCase]:
    """Every kind of router at about this number of tokens, with ties, masks, NaN and odd sizes."""
    deepseek = {"strategy": "noaux_tc", "score": "sigmoid", "scale": 2.5}
    v2 = {"strategy": "group_limited_greedy", "normalise": False, "scale": 1.5}
    routers = {
        "mixtral": RoutingConfig(num_experts=8, top_k=2),
        "qwen": RoutingConfig(num_experts=60, top_k=4, normalise=False),
        "switch": RoutingConfig(num_experts=6, top_k=1, normalise=False),
        "gshard": RoutingConfig(num_experts=6, strategy="top_2"),
        "deepseek_v2": RoutingConfig(num_experts=24, top_k=6, num_groups=3, top_groups=2, **v2),
        "deepseek_v3": RoutingConfig(
            num_experts=64, top_k=8, num_groups=8, top_groups=4, **deepseek
        ),
        "odd_groups": RoutingConfig(num_experts=35, top_k=5, num_groups=5, top_groups=3, **v2),
        "free_experts": RoutingConfig(
            num_experts=6, top_k=3, free_experts=("zero", "copy"), use_bias=True, normalise=False
        ),
        "identity": RoutingConfig(num_experts=37, top_k=7, score="identity"),
    }
    plain = [
        RouterCase(name=name, config=config, tokens=tokens, masked=True, on_grid=True)
        for name, config in routers.items()
    ]
    changes = [
        {"order": "token_major", "dtype": "bfloat16"},
        {"groups": 3, "with_nan": True},
        {"on_grid": False, "masked": False},
    ]
    return plain + [
        RouterCase(
            **{
                "name": "_".join([name, *change]),
                "config": config,
                "tokens": tokens // 3 * 3,
                "masked": True,
                "on_grid": True,
                **change,
            }
        )
        for change in changes
        for name, config in routers.items()
    ]


def timing_loop(
    case: RouterCase,
    implementation: Implementation,
    *,
    seeds: int = 8,
    loops: int = 20,
    backward: bool = False,
) -> Callable[[], Any]:
    """A call that routes `seeds` inputs in turn, `loops` times, in one jitted loop on the device.

    All results are written; block until they are ready, and divide by seeds * loops. Compiled and
    called once. With `backward` the gradient of weights and scores to the logits is taken too.
    """
    batches = [case.inputs(seed) for seed in range(seeds)]

    def work(inputs):
        if backward:
            return _route_and_gradient(case, inputs, implementation)
        routing, counts_M = case.route(inputs, implementation)
        return routing.index, routing.weight, routing.scores, routing.position, counts_M

    @jax.jit
    def run(batches):
        def body(_, state):
            # the barrier keeps XLA from moving the work, which never changes, out of the loop
            ticket, fresh = lax.optimization_barrier((state[0], batches))
            return ticket + 1, [work(inputs) for inputs in fresh]

        shapes = jax.eval_shape(lambda: [work(inputs) for inputs in batches])
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return lax.fori_loop(0, loops, body, (0, empty))

    jax.block_until_ready(run(batches))
    return lambda: run(batches)


def disagreements(case: RouterCase, *, seed: int = 0) -> dict[str, float]:
    """How far the kernels are from the plain functions, on this platform.

    other_choice: tokens whose experts differ; queue_errors: places and counts that are not those
    of the kernels' own choices; weight, scores, gradient: largest difference among the tokens with
    the same experts; valid: tokens that only one of them takes for valid. With `on_grid` logits
    all but rounding must be 0.
    """
    inputs = case.inputs(seed)
    compare = jax.jit(partial(_route_and_gradient, case), static_argnums=1)
    (plain, counts_M), plain_bar = compare(inputs, "xla")
    (fused, fused_counts_M), fused_bar = compare(inputs, "pallas")
    same_T = jnp.all(plain.index == fused.index, axis=-1)
    order_A = queue_order(fused, case.order)
    position_Tk = queue_positions(fused, order_A, case.groups)
    queue_errors = jnp.sum(fused.position != position_Tk)
    queue_errors += jnp.sum(fused_counts_M != fused.counts(fused.keep))
    if bool(jnp.all(same_T)):
        queue_errors += jnp.sum(plain.position != fused.position)
        queue_errors += jnp.sum(counts_M != fused_counts_M)

    def far(a_TX, b_TX):
        far_TX = jnp.abs(a_TX.astype(jnp.float32) - b_TX.astype(jnp.float32))
        return float(jnp.max(jnp.where(same_T[:, None], far_TX, 0.0)))

    return {
        "other_choice": float(jnp.sum(~same_T)),
        "queue_errors": float(queue_errors),
        "valid": float(jnp.sum(plain.valid != fused.valid)),
        "weight": far(plain.weight, fused.weight),
        "scores": far(plain.scores, fused.scores),
        "gradient": far(plain_bar, fused_bar),
    }


def _route_and_gradient(case: RouterCase, inputs, implementation: Implementation):
    """((routing, counts), gradient of a fixed function of weights and scores to the logits)."""

    def loss(logits_TM):
        routed = case.route(inputs | {"logits_TM": logits_TM}, implementation)
        pull_Tk, pull_TM = (
            jnp.sin(1.0 + jnp.arange(a.size, dtype=jnp.float32) % 101).reshape(a.shape)
            for a in (routed[0].weight, routed[0].scores)
        )
        total = jnp.sum(routed[0].weight * pull_Tk) + jnp.sum(routed[0].scores * pull_TM)
        return total, routed

    bar_TM, routed = jax.grad(loss, has_aux=True)(inputs["logits_TM"])
    return routed, bar_TM
