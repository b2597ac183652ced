"""Run by test_parallel.py in a process with eight simulated devices; prints what it found."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.parallel import (
    DATA_PARALLEL,
    Exchange,
    device_mesh,
    expert_parallel,
    shardings,
)
from moejax.moe.usage import aux_loss

BATCH, STEPS, D = 8, 6, 16
LIMITS = {"dropless": None, "capacity": CapacityConfig(factor=0.8, scope="sequence")}


def run(layer, variables, x, target):
    """Loss, usage, output and gradients of one training step's forward and backward."""

    @jax.jit
    def step(params, x):
        def loss(params, x):
            y, sown = layer.apply(variables | {"params": params}, x, train=True, mutable=["moe"])
            total = jnp.mean((y - target) ** 2) + aux_loss(sown["moe"])
            return total, (y, sown["moe"]["usage"][0])

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    found = step(variables["params"], x)
    return found, step.lower(variables["params"], x).compile().as_text()


def difference(found, expected) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def case(shape: tuple[int, int], limits: str, exchange: Exchange | None) -> dict:
    mesh = device_mesh(*shape)
    config = MoEConfig(
        d_model=D,
        d_ff=32,
        routing=RoutingConfig(num_experts=8, top_k=2),
        capacity=LIMITS[limits],
        use_bias=True,
    )
    x = jax.random.normal(jax.random.key(1), (BATCH, STEPS, D))
    target = jax.random.normal(jax.random.key(2), x.shape)
    plain = MoELayer(config)
    variables = plain.init(jax.random.key(0), x)
    expected, _ = run(plain, variables, x, target)
    dispatcher = expert_parallel(mesh, exchange=exchange) if exchange else None
    layer = MoELayer(config, dispatcher=dispatcher)
    rules = {"expert": "expert"} if exchange else DATA_PARALLEL
    params = jax.device_put(variables["params"], shardings(variables["params"], mesh, rules))
    tokens = NamedSharding(mesh, P(("data", "expert")))
    found, text = run(layer, {"params": params}, *jax.device_put((x, target), tokens))
    held = params["experts"]["up"].addressable_shards[0].data.shape[0]
    return {
        "difference": difference(found, expected),
        "counts": [int(n) for n in found[0][1][1].wanted],
        "expected_counts": [int(n) for n in expected[0][1][1].wanted],
        "all_to_all": "all-to-all" in text,
        "experts_held": held,
        # a gathered stack of weights would be a whole [8, 16, 32] on a device
        "gathers_experts": any(
            "all-gather" in line and "f32[8,16,32]" in line.split("all-gather")[0]
            for line in text.splitlines()
        ),
    }


def refused() -> list[str]:
    """What the errors for sizes that cannot be split say."""
    texts = []
    for num_experts, batch, limits in (
        (6, 8, None),
        (8, 2, None),
        (8, 8, CapacityConfig(scope="batch")),
    ):
        routing = RoutingConfig(num_experts=num_experts)
        config = MoEConfig(d_model=D, d_ff=4, routing=routing, capacity=limits)
        layer = MoELayer(config, dispatcher=expert_parallel(device_mesh(2, 4)))
        try:
            layer.init(jax.random.key(0), jnp.ones((batch, 6, D)), train=True)
        except ValueError as error:
            texts.append(str(error))
    return texts


if __name__ == "__main__":
    cases = json.loads(sys.argv[1])
    found: list[dict] = [case(tuple(shape), limits, exchange) for shape, limits, exchange in cases]
    print(json.dumps([*found, {"refused": refused()}]))
