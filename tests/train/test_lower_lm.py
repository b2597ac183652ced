"""A language model as a folder of programs: sizes, positions, and what the folder continues."""

import importlib.util
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowering import mock, parity
from lowering.backends.reference import HostSession
from lowering.isolate import call
from lowering.runtime.folder import program_folders
from lowering.runtime.generate import Generator, Sizes, read_generator
from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import CausalLM, LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig
from train.lower_lm import LMSource, choose_sizes, fixed_positions, lower_lm

CONFIG = LMConfig(
    vocab_size=40,
    d_model=32,
    num_layers=1,
    d_ff=32,
    max_len=100,
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=16),
    moe=MoEConfig(d_model=32, d_ff=32, routing=RoutingConfig(num_experts=4)),
)
PROMPTS = [[3, 1, 4, 1, 5], [9]]


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(CausalLM(CONFIG).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.4, s.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def folder(variables, tmp_path_factory):
    place = tmp_path_factory.mktemp("lm") / "program"
    source = LMSource(name="tiny", config=CONFIG, variables=variables)
    reports = lower_lm(source, place, policy="float32", check="none", batch=2, prompt=32, slots=64)
    assert list(reports) == ["prefill", "decode"]
    assert all(row["ok"] for report in reports.values() for row in report["parity"])
    return place


def test_folder_continues_prompts_as_flax_does(folder, variables):
    folders, sizes = read_generator(folder)
    assert sizes == Sizes(batch=2, prompt=32, slots=64, vocab=40)
    first, second = (folders[name] for name in ("prefill", "decode"))
    prefill = HostSession(first.program, first.weights, "exact")
    decode = HostSession(second.program, second.weights, "exact", shared=prefill)
    run = Generator(prefill, decode, sizes).start(PROMPTS)
    run.feed(np.array([7, 8]))
    longest = CausalLM(CONFIG).apply(variables, jnp.asarray([[*PROMPTS[0], 7]])).logits[0, -1]
    assert run.room == 31
    np.testing.assert_allclose(run.last[0], longest, rtol=1e-4, atol=1e-4)


def test_weights_are_stored_once(folder):
    files = [part / "weights.safetensors" for part in program_folders(folder)]
    assert files[0].samefile(files[1])


def test_each_program_is_a_folder_of_its_own(folder):
    for part in program_folders(folder):
        assert all(report.ok for report in parity.check_folder(part))
        compile((part / "model.py").read_text(), "model.py", "exec")


@pytest.mark.skipif(importlib.util.find_spec("ttnn") is None, reason="needs ttnn")
def test_folder_runs_on_a_mock(folder):
    argument = {"directory": str(folder), "prompts": PROMPTS, "count": 3}
    target = "lowering.runtime.__main__:continue_prompt"
    tokens = call(target, argument, env=mock.environment("wormhole_b0"))
    assert np.shape(tokens) == (2, 3)


@pytest.mark.parametrize(
    ("given", "found"),
    [((1, None, None), (32, 64)), ((2, 64, None), (64, 96)), ((1, 32, 96), (32, 96))],
)
def test_sizes_are_whole_tiles_within_the_context(given, found):
    sizes = choose_sizes(CONFIG, *given)
    assert (sizes.prompt, sizes.slots) == found


@pytest.mark.parametrize("wrong", [(0, 32, 64), (1, 33, 64), (1, 64, 32), (1, 32, 128), (1, 0, 64)])
def test_unfit_sizes(wrong):
    with pytest.raises(ValueError, match=r"multiples of 32, 32 <= prompt <= slots <= 96"):
        choose_sizes(CONFIG, *wrong)


def test_angles_that_change_with_the_text_are_refused():
    def with_rope(rope):
        return replace(CONFIG, attention=replace(CONFIG.attention, rope=rope))

    sizes = choose_sizes(CONFIG, 1, 32, 64)
    short = RopeConfig(kind="dynamic", factor=2.0, original_max_len=32)
    with pytest.raises(ValueError, match="'dynamic' changes the angles"):
        fixed_positions(with_rope(short), sizes)
    long = replace(short, original_max_len=64)
    assert fixed_positions(with_rope(long), sizes).attention.rope.kind == "default"
    assert fixed_positions(CONFIG, sizes) is CONFIG
