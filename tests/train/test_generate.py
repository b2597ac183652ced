"""moejax generate on a checkpoint folder, and its one-line errors; a smoke test of `bench lm`."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from moejax.interop.lm import save_lm
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import CausalLM, LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import MoEConfig
from train.benchmarks.lm import RECORDED, TARGET, make_rows
from train.benchmarks.lm_speed import SIZES, Sizes, measure
from train.cli import main

CONFIG = LMConfig(
    vocab_size=259,
    d_model=16,
    num_layers=1,
    d_ff=24,
    max_len=48,
    attention=AttentionConfig(num_heads=2, num_kv_heads=2, head_dim=8),
    moe=MoEConfig(d_model=16, d_ff=24, routing=RoutingConfig(num_experts=4)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published checkpoint of a random model for bytes."""
    path = tmp_path_factory.mktemp("checkpoint")
    variables = CausalLM(CONFIG).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    save_lm(CONFIG, variables, path)
    return path


def test_a_checkpoint_continues_a_prompt(folder, tmp_path, capsys):
    out = tmp_path / "texts.json"
    options = ["--prompt", "def ", "--max-new-tokens", "6", "--json", str(out)]
    assert main(["generate", "--model", str(folder), *options]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("def ")
    assert "tokens/s" in shown.err
    (one,) = json.loads(out.read_text())["completions"]
    assert len(one["tokens"]) == 6
    assert one["finished"] == "length"
    assert shown.out == f"def {one['text']}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no prompt"),
        (["--prompt", ""], "empty"),
        (["--prompt", "x" * 48], "48 tokens"),
        (["--prompt", "x", "--temperature", "-1"], "temperature"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens"),
        (["--prompt", "x", "--stop", ""], "stop string"),
        (["--prompt-file", "absent.txt"], "absent.txt"),
    ],
)
def test_wrong_input_is_one_line(folder, options, message, capsys):
    assert main(["generate", "--model", str(folder), *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


@pytest.mark.parametrize("content", [None, "{", '{"recipe": "mole_debug"}', '{"model_type": "x"}'])
def test_folders_without_a_language_model_are_named(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert main(["generate", "--model", str(tmp_path), "--prompt", "x"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_bench_counts_and_judges():
    tiny = Sizes(
        vocab=32,
        width=16,
        hidden=16,
        layers=1,
        heads=2,
        key_heads=1,
        experts=4,
        prefill=16,
        prompt=8,
        new=4,
        batches=(1,),
        rounds=1,
    )
    found = measure(tiny)
    assert all(value > 0 for value in found.values())
    assert set(found) >= {"prefill_1", "prefill_1_bound", "decode_1", "decode_1_bound"}
    whole = {name: 2 * value for name, value in RECORDED.items()}
    whole |= {f"{name}_bound": 1.0 for name in RECORDED} | {"matmul": 1e9, "read": 1e9}
    judged = [row for row in make_rows(whole, SIZES, 1) if row.target]
    assert [row.ratio for row in judged] == [TARGET] * 4
    assert all(row.ok for row in judged)
    slower = make_rows(whole | {"decode_8": RECORDED["decode_8"]}, SIZES, 1)
    assert [row.name for row in slower if row.ok is False] == ["decode_8_1t"]
    assert not [row for row in make_rows(whole, replace(SIZES, rounds=1), 1) if row.target]
    assert not [row for row in make_rows(whole, SIZES, 2) if row.target]


def test_work_is_counted_by_hand_for_the_judged_model():
    """About 63 MFLOP a token without attention; 2 of 8 experts a layer in a step of one row."""
    weights = SIZES.flops() - 8 * 2 * 512 * 512
    assert weights == 2 * 8 * (786_432 + 2 * 1_572_864)
    assert SIZES.step_bytes(1) == 4 * (8 * (786_432 + 2 * 1_572_864) + 512 * 32_000)
