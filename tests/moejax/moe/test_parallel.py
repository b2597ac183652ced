"""Several devices compute what one does: experts split, tokens exchanged, counts summed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.parallel import device_mesh, expert_parallel, partition_specs

ROOT = Path(__file__).resolve().parents[3]
# mesh, limits, exchange (none: data parallel)
CASES = [
    [[2, 4], "dropless", "slots"],
    [[2, 4], "capacity", "auto"],
    [[8, 1], "dropless", None],
    [[4, 2], "dropless", "tokens"],
]


@pytest.fixture(scope="module")
def found():
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(Path(__file__).with_name("parallel_case.py")), json.dumps(CASES)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "6 experts cannot be split evenly over 4 devices"),
        (1, "12 tokens cannot be split evenly over 8 devices"),
        (2, "use CapacityConfig"),
    ],
)
def test_what_cannot_be_split_is_refused(found, number, message):
    assert message in found[-1]["refused"][number]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_sharded_equals_unsharded(found, number):
    assert found[number]["difference"] < 1e-5


@pytest.mark.parametrize("number", range(len(CASES)))
def test_counts_are_those_of_all_devices(found, number):
    assert found[number]["counts"] == found[number]["expected_counts"]
    assert sum(found[number]["counts"]) == 8 * 6 * 2


@pytest.mark.parametrize("number", [n for n, case in enumerate(CASES) if case[2]])
def test_tokens_travel_and_experts_stay(found, number):
    assert found[number]["all_to_all"] == (CASES[number][2] != "tokens")
    assert not found[number]["gathers_experts"]
    assert found[number]["experts_held"] == 8 // CASES[number][0][1]


def test_rules():
    layer = MoELayer(MoEConfig(d_model=4, d_ff=6, routing=RoutingConfig(num_experts=2)))
    params = layer.init(jax.random.key(0), jnp.ones((1, 2, 4)))["params"]
    specs = partition_specs({"block": {"moe": params}})["block"]["moe"]
    assert specs["router_kernel"] == P()
    assert specs["experts"]["up"] == P("expert", None, None)
    both = partition_specs(params, {"expert": "e", "mlp": "m"})["experts"]
    assert both["up"] == P("e", None, "m")
    assert both["down"] == P("e", "m", None)
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    assert partition_specs(stacked)["experts"]["up"] == P(None, "expert", None, None)


def make(num_experts=4, mesh=None):
    routing = RoutingConfig(num_experts=num_experts)
    config = MoEConfig(d_model=4, d_ff=6, routing=routing, capacity=CapacityConfig())
    return MoELayer(config, dispatcher=None if mesh is None else expert_parallel(mesh))


def test_one_device_is_a_mesh_too():
    x, layer = jax.random.normal(jax.random.key(0), (2, 3, 4)), make(mesh=device_mesh(1, 1))
    variables = layer.init(jax.random.key(0), x)
    plain = make().apply(variables, x, train=True)
    assert jnp.allclose(layer.apply(variables, x, train=True), plain, atol=1e-6)


def test_meshes_of_another_kind_are_refused():
    layer = make(mesh=jax.make_mesh((1, 1), ("data", "expert")))
    with pytest.raises(ValueError, match="axis type Auto"):
        layer.init(jax.random.key(0), jnp.ones((2, 3, 4)))
