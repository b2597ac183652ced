"""What `bench lm` measures in one process: python -m train.benchmarks.lm_speed SIZES_AS_JSON."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.generation.generate import GenerationConfig, Generator
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import CausalLM, LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig

PARAMETERS = 139_764_224


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The model, the lengths of the cases, and how often each is timed."""

    vocab: int = 32_000
    width: int = 512
    hidden: int = 1024
    layers: int = 8
    heads: int = 8
    key_heads: int = 4
    experts: int = 8
    top_k: int = 2
    prefill: int = 512
    prompt: int = 128
    new: int = 64
    batches: tuple[int, ...] = (1, 8)
    rounds: int = 5

    @property
    def config(self) -> LMConfig:
        routing = RoutingConfig(num_experts=self.experts, top_k=self.top_k)
        return LMConfig(
            vocab_size=self.vocab,
            d_model=self.width,
            num_layers=self.layers,
            d_ff=self.hidden,
            attention=AttentionConfig(
                num_heads=self.heads,
                num_kv_heads=self.key_heads,
                head_dim=self.width // self.heads,
            ),
            moe=MoEConfig(d_model=self.width, d_ff=self.hidden, routing=routing),
            max_len=2 * max(self.prefill, self.prompt + self.new),
        )

    @property
    def attention_weights(self) -> int:
        """Of the projections of a layer."""
        return 2 * self.width**2 * (self.heads + self.key_heads) // self.heads

    @property
    def expert_weights(self) -> int:
        """Of one expert."""
        return 3 * self.width * self.hidden

    def flops(self) -> float:
        """Of a prompt's token: projections, chosen experts, and half of the scores and values."""
        weights = self.attention_weights + self.top_k * self.expert_weights
        return self.layers * (2 * weights + 2 * self.width * self.prefill)

    def step_bytes(self, batch: int) -> float:
        """Of the weights that a decoding step of so many rows needs, for random choices."""
        chosen = self.experts * (1 - (1 - self.top_k / self.experts) ** batch)
        layer = self.attention_weights + chosen * self.expert_weights
        return 4 * (self.layers * layer + self.width * self.vocab)


SIZES = Sizes()


def random_variables(config: LMConfig) -> Any:
    """Normal parameters, each matrix over the root of its inputs."""
    ids = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(lambda: CausalLM(config).init(jax.random.key(0), ids))
    rng = np.random.default_rng(0)

    def draw(leaf) -> jax.Array:
        inputs = leaf.shape[-2] if len(leaf.shape) > 1 else 1
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / inputs**0.5)

    return jax.tree.map(draw, shapes)


def measure(sizes: Sizes) -> dict[str, float]:
    """FLOP/s, bytes/s, and tokens/s of each case with the bound that these put on it."""
    variables = random_variables(sizes.config)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert sizes != SIZES or count == PARAMETERS, count
    generator = Generator(sizes.config, variables)
    found = {"matmul": _matmul_rate(sizes.rounds), "read": _read_rate(variables, sizes.rounds)}
    for batch in sizes.batches:
        seconds = _prefill_seconds(generator, sizes, batch)
        found[f"prefill_{batch}"] = batch * sizes.prefill / seconds
        found[f"prefill_{batch}_bound"] = found["matmul"] / sizes.flops()
        seconds = _decode_seconds(generator, sizes, batch)
        found[f"decode_{batch}"] = batch * sizes.new / seconds
        found[f"decode_{batch}_bound"] = batch * found["read"] / sizes.step_bytes(batch)
    return found


def _prefill_seconds(generator: Generator, sizes: Sizes, batch: int) -> float:
    ids_BS = _random_ids(sizes, batch, sizes.prefill)
    config = GenerationConfig(max_new_tokens=1)
    return _median(lambda: generator.start(ids_BS, config).wait(), sizes.rounds)


def _decode_seconds(generator: Generator, sizes: Sizes, batch: int) -> float:
    """Of the steps alone: the first token comes with the prefill."""
    ids_BS = _random_ids(sizes, batch, sizes.prompt)
    config = GenerationConfig(max_new_tokens=sizes.new + 1)
    runs = []

    def prepare() -> None:
        runs.append(generator.start(ids_BS, config))
        runs[-1].wait()

    return _median(lambda: runs.pop().advance(sizes.new + 1), sizes.rounds, prepare)


def _random_ids(sizes: Sizes, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, sizes.vocab, (batch, length))


def _matmul_rate(rounds: int) -> float:
    a = jnp.ones((512, 512), jnp.float32)
    b = jnp.ones((512, 1024), jnp.float32)
    matmul = jax.jit(jnp.matmul)
    return 2 * 512 * 512 * 1024 / _median(lambda: matmul(a, b).block_until_ready(), 10 * rounds)


def _read_rate(variables: Any, rounds: int) -> float:
    """Of the quicker of two ways to read every weight."""
    rates = []
    for reduce in (jnp.sum, jnp.max):
        read = jax.jit(lambda tree, reduce=reduce: [reduce(leaf) for leaf in jax.tree.leaves(tree)])
        rates.append(_median(lambda read=read: jax.block_until_ready(read(variables)), rounds))
    return sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) / min(rates)


def _median(
    function: Callable[[], Any], rounds: int, prepare: Callable[[], None] = lambda: None
) -> float:
    """Median seconds of a call, after one that compiles."""
    seconds = []
    for _ in range(rounds + 1):
        prepare()
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(measure(Sizes(**given | {"batches": tuple(given["batches"])}))))
