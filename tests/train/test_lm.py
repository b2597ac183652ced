"""Training the language model: the loop on a tiny one, state beside the parameters, files."""

import functools
import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import IGNORED, LMConfig, token_losses
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig
from moejax.moe.schedule import Schedule
from train.checkpoint import params_sha256
from train.config import LoopConfig, override
from train.lm_task import LMTraining, load_report, make_task
from train.loop import train
from train.optim import OptimConfig, make_optimizer
from train.packing import pack
from train.recipes import build
from train.step import Scorer, Trainer, init_state, make_call
from train.text import Corpus, TextConfig
from train.workdir import Workdir

pytestmark = pytest.mark.usefixtures("compile_once")
OPTIM = functools.partial(make_optimizer, OptimConfig(learning_rate=1e-2, clip_norm=1.0))
LOOP = LoopConfig(
    epochs=2, steps_per_epoch=6, steps_per_call=3, batch_size=4, eval_batch_size=4, patience=9
)
MODEL = LMConfig(
    vocab_size=259,
    d_model=16,
    num_layers=2,
    d_ff=16,
    dense_layers=(0,),
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8),
    moe=MoEConfig(
        d_model=16,
        d_ff=16,
        routing=RoutingConfig(num_experts=4, use_bias=True),
        capacity=None,
        dispatch="dense",
        bias_rate=0.01,
    ),
)


@functools.cache
def text():
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 105, 4).astype(np.uint8)) for _ in range(8)]
    make = lambda: b" ".join(words[i] for i in rng.integers(0, 8, rng.integers(4, 30)))  # noqa: E731
    parts = {"train": 40, "val": 4, "test": 4}
    made = {part: tuple(make() for _ in range(count)) for part, count in parts.items()}
    return pack(Corpus(source="words", parts=made), TextConfig(seq_len=32))


def tiny(model=MODEL, **training):
    return make_task(model, LMTraining(**training), text())


def run(task, folder, loop=LOOP):
    workdir, console = Workdir(folder), Console(file=io.StringIO())
    with workdir.held():
        return train(task, OPTIM, loop, workdir, {}, console)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(tiny(), folder)


def test_it_learns_and_says_who_works(whole):
    folder, result = whole
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines[:-1]] == [6, 12]
    assert lines[-1]["val_bits_per_byte"] < lines[0]["val_bits_per_byte"] < 8
    assert np.shape(lines[0]["expert_load"]) == (1, 4)
    np.testing.assert_allclose(np.sum(lines[0]["expert_load"]), 1, atol=1e-3)
    assert lines[-1]["params_sha256"] == params_sha256(result.params)
    assert lines[-1]["cpu_seconds"] > 0
    assert int(result.params["training"]["step"]) == 12


def test_it_continues_to_the_same_bits(whole, tmp_path, monkeypatch):
    original, calls = Trainer.run, 0

    def stop(self, state, indices):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return original(self, state, indices)

    loop = replace(LOOP, checkpoint_seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tiny(), tmp_path, loop)
    rest = run(tiny(), tmp_path, loop)
    assert rest.final["params_sha256"] == whole[1].final["params_sha256"]


def step(task, accumulate):
    """The state after a step of 8 rows, the last of them short of tokens."""
    optimizer = OPTIM(steps_per_epoch=10, epochs=1)
    rows = text().starts["train"]
    indices = np.append(rows[:7], rows[-1]).astype(np.int32)[None]
    call = make_call(task, optimizer, accumulate=accumulate)
    return call(init_state(task, optimizer, 0), task.arrays, indices)[:2]


def test_accumulated_gradients_are_those_of_the_batch_and_the_bias_moves_once():
    # without auxiliary losses, which are not sums over tokens
    moe = replace(MODEL.moe, losses=replace(MODEL.moe.losses, load_balance=0.0))
    task = tiny(replace(MODEL, moe=moe))
    (one, metrics), (two, others) = step(task, 1), step(task, 2)
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert int(two.params["training"]["step"]) == 1
    counts = metrics["choices"][0, 0]
    bias = two.params["router_state"]["layers_1"]["moe"]["bias"]
    np.testing.assert_allclose(bias, 0.01 * np.sign(counts.mean() - counts), atol=1e-7)
    share = 0.99 * 0.25 + 0.01 * counts / counts.sum()
    np.testing.assert_allclose(two.params["training"]["load"][0], share, rtol=1e-5)


def test_dead_experts_are_named_and_reset():
    schedule = Schedule(reset_steps=2)
    task = tiny(replace(MODEL, moe=replace(MODEL.moe, schedule=schedule)), dead_share=0.5)
    params = task.init(jax.random.key(0))
    load = jnp.array([[0.3, 0.01, 0.39, 0.3]])
    params |= {"training": params["training"] | {"load": load}}
    assert load_report(params, 0.5)["dead_experts"] == [[0, 1]]
    kernel = lambda tree: np.asarray(tree["params"]["layers_1"]["moe"]["router_kernel"])  # noqa: E731
    changed = []
    for number in range(2):
        metrics = {"choices": load}
        before = kernel(params)
        params, _ = task.update(params, {}, metrics, jax.random.key(number))
        changed.append(np.any(kernel(params) != before, axis=0).tolist())
    assert changed == [[False] * 4, [False, True, False, False]]


def test_losses_leave_out_what_is_no_target():
    logits = jax.random.normal(jax.random.key(0), (1, 3, 5))
    nats, squares = token_losses(logits, jnp.array([[2, IGNORED, 4]]))
    logs = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(nats[0], [-logs[0, 0, 2], 0, -logs[0, 2, 4]], rtol=1e-5)
    total = jax.nn.logsumexp(logits, axis=-1)[0]
    np.testing.assert_allclose(squares[0], [total[0] ** 2, 0, total[2] ** 2], rtol=1e-5)


def test_bits_per_byte_count_bytes_alone():
    task = tiny()
    params = task.init(jax.random.key(0))
    zero = jax.tree.map(jnp.zeros_like, params["params"])
    scores = Scorer(task, batch_size=3).scores(params | {"params": zero}, "val")
    documents = text().corpus.parts["val"]
    size = sum(map(len, documents))
    expected = np.log2(259) * (size + len(documents)) / size  # a uniform guess of every token
    np.testing.assert_allclose(scores["bits_per_byte"], expected, rtol=1e-5)


def gradient(model):
    task, batch = tiny(model), text().starts["train"][:2]
    params, rows = task.init(jax.random.key(0)), task.cut(task.arrays, batch)

    def loss(one):
        return task.loss(params | {"params": one}, rows, jax.random.key(1))[0]

    return jax.jit(jax.grad(loss))(params["params"])


def test_remat_changes_no_gradient():
    plain = gradient(MODEL)
    for remat in ("layers", "all_but_matmuls"):
        again = gradient(replace(MODEL, remat=remat))
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_computes_with_master_weights_in_float32():
    task, optimizer = tiny(replace(MODEL, dtype="bfloat16")), OPTIM(steps_per_epoch=9, epochs=1)
    state = jax.eval_shape(lambda: init_state(task, optimizer, 0))
    indices = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    text_of = jax.make_jaxpr(make_call(task, optimizer))(state, task.arrays, indices)
    assert "bf16[" in str(text_of)
    after = jax.eval_shape(make_call(task, optimizer), state, task.arrays, indices)[0]
    for leaf in jax.tree.leaves((after.params, after.opt_state)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_the_dense_recipe_has_the_active_parameters_of_the_sparse_one():
    sparse, dense = build("lm_small").model, build("lm_small_dense").model
    assert dense.moe is None
    assert dense.d_ff == sparse.moe.routing.top_k * sparse.moe.d_ff
    assert replace(dense, moe=sparse.moe, d_ff=sparse.d_ff) == sparse


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.load_decay=1"], "load_decay is 1.0"),
        (["training.z_loss=-1"], "z_loss is -1.0"),
        (["loop.accumulate=3"], "multiple of loop.accumulate"),
        (["optim.final_share=2"], "final_share"),
        (["model.moe.d_model=8"], "moe.d_model is 8"),
    ],
)
def test_bad_options(settings, message):
    with pytest.raises(ValueError, match=message):
        override(build("lm_debug"), settings)
