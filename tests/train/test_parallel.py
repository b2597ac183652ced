"""A training step over several devices is that of one: data, experts and layers shared out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from moejax.models.sharding import lm_mesh, lm_shardings
from train.config import override
from train.recipes import build

ROOT = Path(__file__).resolve().parents[2]
CASES = [[2, 2, 2]]


@pytest.fixture(scope="module")
def found():
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(Path(__file__).with_name("parallel_case.py")), json.dumps(CASES)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_sharded_equals_unsharded(found, number):
    one = found[number]
    assert max(one["loss"], one["state"]) < 1e-5


@pytest.mark.parametrize("number", range(len(CASES)))
def test_each_device_holds_its_part(found, number):
    _, experts, model = CASES[number]
    assert found[number]["experts"] == [4 // experts, 16, 16 // model]
    assert found[number]["moment"] == [16, 16 // model]


def test_what_the_mesh_does_not_divide_lies_whole():
    mesh = AbstractMesh((1, 1, 4), ("data", "expert", "model"))
    arrays = {"query": jnp.ones((4, 6)), "key": jnp.ones((4, 8)), "other": jnp.ones(3)}
    found = lm_shardings(
        {"params": {"layers_0": {"attention": arrays}}, "count": jnp.ones(())}, mesh
    )
    assert found["params"]["layers_0"]["attention"]["query"].spec == P(None, None)
    assert found["params"]["layers_0"]["attention"]["key"].spec == P(None, "model")
    assert found["params"]["layers_0"]["attention"]["other"].spec == P()
    assert found["count"].spec == P()


def test_meshes_that_do_not_fit_are_refused():
    count = len(jax.devices())
    with pytest.raises(ValueError, match=f"needs {count + 1} devices; there are {count}"):
        lm_mesh(data=count + 1)
    with pytest.raises(ValueError, match=r"mesh\.data, which is 3, must divide each"):
        override(build("lm_debug"), ["mesh.data=3"])
    with pytest.raises(ValueError, match=r"mesh\.expert is 0"):
        override(build("lm_debug"), ["mesh.expert=0"])
