"""A training step of an MoE language model on one GPU: utilisation, and where the rest goes.

OLMoE 1B-7B in bfloat16 with AdamW and layers recomputed for the gradient, on random tokens. Model
FLOPs are 6 for each weight that a token meets, and those of the scores that causal attention needs;
what is computed again does not count.
"""

import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moejax.models.moe_lm import CausalLM, LMConfig, next_token_loss
from moejax.models.moe_lm_sizes import olmoe_1b_7b
from train.benchmarks.gpu_layer import normal

# Dense bfloat16 FLOP/s by the vendor's datasheet, H100 SXM and H200.
PEAK = 989e12
WARM_UP, REPEATS = 2, 5
# Kernels by the first pattern that is found in their name.
KINDS = {
    "grouped products": "moejax_grouped",
    "dense products": "gemm|nvjet|cutlass|cublas|sm90|dot",
    "sort and top k": "sort|topk",
    "elementwise, gathers and sums": "",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """The model and its batch."""

    model: LMConfig
    rows: int = 4
    length: int = 2048

    @property
    def flops(self) -> float:
        """Model FLOPs of a step."""
        model = self.model
        assert model.moe is not None
        heads = model.attention.num_heads * model.attention.head_dim
        routing = model.moe.routing
        layer = 4 * model.d_model * heads + model.d_model * routing.num_experts
        layer += routing.top_k * 3 * model.d_model * model.moe.d_ff
        weights = model.num_layers * layer + model.d_model * model.vocab_size
        # scores and their sum: 2 products of S / 2 keys a query, forward and twice backward
        scores = model.num_layers * 3 * 2 * 2 * heads * self.length / 2
        return self.rows * self.length * (6 * weights + scores)


def default_step(layers: int | None = None) -> Step:
    """The step that is judged, or a shorter model's."""
    model = olmoe_1b_7b()
    return Step(
        model=replace(
            model,
            num_layers=layers or model.num_layers,
            dtype="bfloat16",
            remat="layers",
        )
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Median seconds of a step, and what share of its kernels' time each kind takes."""

    seconds: float
    shares: dict[str, float]


def measure(step: Step) -> Measured:
    """Time the step, then profile it."""
    run, state, ids_BS = make_step(step)
    times = []
    for index in range(WARM_UP + REPEATS):
        started = time.perf_counter()
        state = run(*state, ids_BS)[0]
        jax.block_until_ready(state)
        if index >= WARM_UP:
            times.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run(*state, ids_BS))
        kernels = kernel_seconds(Path(folder))
    return Measured(seconds=statistics.median(times), shares=by_kind(kernels))


def make_step(step: Step) -> tuple[Callable[..., Any], tuple[Any, Any], jax.Array]:
    """(compiled step of parameters, optimiser state and tokens; the first two; tokens)."""
    model, optimizer = CausalLM(step.model), optax.adamw(1e-4)
    shape = (step.rows, step.length)
    ids_BS = jax.random.randint(jax.random.key(0), shape, 0, step.model.vocab_size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids_BS)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    params = jax.tree.unflatten(tree, [_leaf(i, leaf) for i, leaf in enumerate(leaves)])

    def loss(params, ids_BS):
        output: Any = model.apply({"params": params}, ids_BS)
        return next_token_loss(output.logits, ids_BS)[0]

    def run(params, optimizer_state, ids_BS):
        value, grads = jax.value_and_grad(loss)(params, ids_BS)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    state = params, jax.jit(optimizer.init)(params)
    return jax.jit(run, donate_argnums=(0, 1)), state, ids_BS


def _leaf(seed: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if leaf.ndim < 2:
        return jnp.ones(leaf.shape, jnp.bfloat16)
    return normal(seed, leaf.shape, leaf.shape[-2] ** -0.5)


def kernel_seconds(folder: Path) -> Counter[str]:
    """Seconds of every kernel in a folder that jax.profiler filled, by its name."""
    (path,) = folder.rglob("*.xplane.pb")
    seconds: Counter[str] = Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream"):
                for event in line.events:
                    seconds[event.name] += event.duration_ns / 1e9
    return seconds


def by_kind(kernels: Counter[str]) -> dict[str, float]:
    """Share of each of KINDS in the sum."""
    shares = dict.fromkeys(KINDS, 0.0)
    for name, seconds in kernels.items():
        kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, name))
        shares[kind] += seconds / max(sum(kernels.values()), 1e-12)
    return shares
