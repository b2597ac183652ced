"""Weak scaling: the layer on several GPUs, experts split over them, tokens a GPU constant."""

from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moejax.moe.parallel import device_mesh, expert_parallel, shardings
from train.benchmarks.gpu_layer import Shape, make_layer, passes, time_turns


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Median seconds of the layer on one GPU and, with as many tokens a GPU, on all."""

    alone: float
    together: float


def measure(shape: Shape, which: str, devices: int) -> Measured:
    """Time both, one after the other."""
    layer, arguments = make_layer(shape)
    compiled = jax.jit(passes(layer, which)).lower(*arguments).compile()
    (alone,) = time_turns(lambda: compiled(*arguments))
    layer, arguments = make_split(shape, devices)
    split = jax.jit(passes(layer, which)).lower(*arguments).compile()
    (together,) = time_turns(lambda: split(*arguments))
    return Measured(alone=alone, together=together)


def make_split(shape: Shape, devices: int):
    """make_layer for as many tokens a GPU, on a mesh of them."""
    mesh = device_mesh(1, devices)
    larger = replace(shape, tokens=shape.tokens * devices)
    layer, (params, x_BSD) = make_layer(larger, rows=devices, dispatcher=expert_parallel(mesh))
    rows = NamedSharding(mesh, P(("data", "expert")))
    return layer, (jax.device_put(params, shardings(params, mesh)), jax.device_put(x_BSD, rows))


def difference(shape: Shape, devices: int) -> float:
    """Relative Frobenius norm of what the layer's outputs differ by on one GPU and on all."""
    layer, arguments = make_split(shape, devices)
    found = np.asarray(jax.jit(layer)(*arguments), np.float64)
    larger = replace(shape, tokens=shape.tokens * devices)
    layer, arguments = make_layer(larger, rows=devices)
    expected = np.asarray(jax.jit(layer)(*arguments), np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
