"""Run by test_parallel.py in a process with eight simulated devices; prints what it found."""

import json
import sys

import jax
import numpy as np
import optax

from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import LMConfig
from moejax.models.sharding import lm_mesh
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig
from train.lm_task import LMTraining, make_task
from train.packing import pack
from train.step import init_state, make_call
from train.text import Corpus, TextConfig

MODEL = LMConfig(
    vocab_size=260,
    d_model=16,
    num_layers=2,
    d_ff=16,
    dense_layers=(0,),
    attention=AttentionConfig(num_heads=2, num_kv_heads=2, head_dim=8),
    moe=MoEConfig(
        d_model=16,
        d_ff=16,
        routing=RoutingConfig(num_experts=4, use_bias=True),
        num_shared_experts=1,
        capacity=None,
        dispatch="dense",
    ),
)
DOCUMENTS = tuple(bytes(np.random.default_rng(n).integers(97, 123, 90)) for n in range(12))
TEXT = pack(
    Corpus(source="", parts=dict.fromkeys(("train", "val", "test"), DOCUMENTS)),
    TextConfig(seq_len=16),
)


def run(mesh):
    """Losses of two steps, and the state after them."""
    task = make_task(MODEL, LMTraining(), TEXT, mesh)
    # a large eps: Adam would turn the noise of a gradient of 0 into a whole step
    optimizer = optax.adam(1e-2, eps=1e-3)
    indices = TEXT.starts["train"][:16].reshape(2, 8)
    call = make_call(task, optimizer)
    state, metrics, _ = call(init_state(task, optimizer, 0), task.arrays, indices)
    return metrics["loss"], state


def case(shape, expected_losses, expected):
    losses, state = run(lm_mesh(*shape))
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
    experts = state.params["params"]["layers_1"]["moe"]["experts"]["up"]
    moment = state.opt_state[0].mu["layers_0"]["attention"]["query"]
    return {
        "loss": float(np.max(np.abs(losses - expected_losses))),
        "state": max(float(np.max(np.abs(np.subtract(a, b)))) for a, b in pairs),
        "experts": experts.sharding.shard_shape(experts.shape),
        "moment": moment.sharding.shard_shape(moment.shape),
    }


if __name__ == "__main__":
    losses, state = run(None)
    print(json.dumps([case(one, losses, state) for one in json.loads(sys.argv[1])]))
