"""How much memory it takes to load a checkpoint, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from moejax.interop.lm import save_lm
from moejax.interop.lm.families import read_config
from moejax.interop.lm.fit import variable_shapes

SMALL = Path(__file__).parents[2] / "fixtures" / "moe_lm" / "mixtral"
FIELDS = {
    "model_type": "mixtral",
    "vocab_size": 8000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
# resident memory before, then the most there ever was; a small model loads first, for the imports.
# VmHWM is this process's own, while getrusage's maxrss begins at that of the one that started it
CHILD = """
import re, sys, jax
from moejax.interop.lm import load_lm
options = {"sharding": jax.sharding.SingleDeviceSharding(jax.devices()[0])} if sys.argv[3:] else {}
load_lm(sys.argv[1], **options)
def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = kilobytes("VmRSS")
config, variables = load_lm(sys.argv[2], **options)
jax.block_until_ready(variables)
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of about 190 MB, and its size."""
    config = read_config(FIELDS)
    shapes = variable_shapes(config)
    flat = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    folder = tmp_path_factory.mktemp("checkpoint")
    save_lm(config, unflatten_dict(flat, sep="/"), folder)
    return folder, (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("how", [(), ("sharded",)], ids=["plain", "sharded"])
def test_loading_holds_little_beside_the_arrays(checkpoint, how):
    folder, size = checkpoint
    assert size > 180e6
    command = [sys.executable, "-c", CHILD, str(SMALL), str(folder), *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    share = int(done.stdout) / size
    assert 0.9 < share < 1.2, f"loading took {share:.2f} times the checkpoint's size"
