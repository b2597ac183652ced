"""A structured start: smooth token tables, a clock, cross-attention that copies."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from moejax.interop.chronos import initial
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config
from train.chronos_init import CLOCK, WAVE, structured

SIZES = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1}
TOKENS = ChronosConfig(n_tokens=300, context_length=16, prediction_length=4)
PERIOD = 12
SPREAD = 0.2  # relative: what few features of waves differ by from as many normal ones
ROUNDING = 1e-5  # absolute: of a float32 cosine of size 2


def made(*, tied=True, **moe):
    """(config, variables before, variables after)."""
    config = ChronosModelConfig(
        t5=T5Config(vocab_size=320, tie_word_embeddings=tied, initializer_factor=0.3, **SIZES),
        chronos=ChronosConfig(**vars(TOKENS) | moe),
    )
    before = initial(config, jax.random.key(0))
    after = structured(config, before, PERIOD, jax.random.key(1))
    assert jax.tree.map(np.shape, before) == jax.tree.map(np.shape, after)
    return config, before, after


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("experts", [0, 3])
def test_neighbouring_bins_begin_alike(tied, experts):
    moe = {"use_moe": True, "num_experts": experts, "num_active_experts": 1} if experts else {}
    _, before, after = made(tied=tied, **moe)
    tables = {"shared": lambda tree: tree["params"]["shared"]}
    if experts:
        tables["experts"] = lambda tree: tree["params"]["experts"]["lm_head"][1].T
    elif not tied:
        tables["lm_head"] = lambda tree: tree["params"]["lm_head"].T
    for name, table in tables.items():
        old, new = np.asarray(table(before)), np.asarray(table(after))
        if name != "shared":  # there, the clock marks these two
            np.testing.assert_array_equal(old[:2], new[:2])
        bins = new[3:299, 10:]  # without what the clock uses
        np.testing.assert_allclose(bins.std(), old.std(), rtol=SPREAD)
        near = np.abs(bins[1:] - bins[:-1]).mean()
        far = np.abs(bins[100:] - bins[:-100]).mean()
        assert near < 0.8 * far


@pytest.mark.parametrize("architecture", ["shared_then_expert", "expert_only"])
def test_biases_of_positions_are_waves_over_the_distance(architecture):
    _, _, after = made(use_moe=True, num_experts=3, moe_architecture=architecture)
    leaves = jax.tree_util.tree_leaves_with_path(after["params"])
    tables = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in leaves
        if "relative_bias" in jax.tree_util.keystr(path[-1:])
    }
    assert len(tables) == 2
    for path, table in tables.items():
        assert np.abs(table).max() == WAVE
        half = table.shape[-2] // 2
        rows = table[..., :half, :] if "encoder" in path else table
        np.testing.assert_allclose(rows[..., PERIOD:, :], rows[..., :-PERIOD, :], atol=ROUNDING)
        assert (rows[..., 1:PERIOD, 0] < WAVE - 0.1).all()
        if "encoder" in path:  # so many steps before are as many after, less whole periods
            later = table[..., half:, :]
            np.testing.assert_allclose(later[..., PERIOD - 1, :], rows[..., 1, :], atol=ROUNDING)


@pytest.mark.parametrize("architecture", [None, "shared_then_expert", "expert_only"])
def test_a_step_begins_by_looking_whole_periods_back(architecture):
    moe = {"use_moe": True, "moe_architecture": architecture} if architecture else {}
    sizes = {"context_length": 36, "prediction_length": 8}
    config, _, after = made(**sizes, **moe)
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.integers(100, 200, 36), [1]])
    many = np.repeat(ids[None], 37, axis=0)
    many[np.arange(36), np.arange(36)] += 40  # the last row is as it was
    ahead = np.broadcast_to([0, *rng.integers(100, 200, 7)], (37, 8))
    out = config.module().apply(after, many, np.ones_like(many, bool), ahead)
    logits = np.asarray(out.logits if architecture else out)
    moved_IU = np.linalg.norm(logits[:-1] - logits[-1], axis=-1)
    back_IU = (36 + np.arange(8)[None] - np.arange(36)[:, None]) % PERIOD
    by_phase = [moved_IU[back_IU == phase].mean() for phase in range(PERIOD)]
    assert np.argmax(by_phase) in (0, 1, PERIOD - 1)
    assert by_phase[0] > 1.3 * by_phase[PERIOD // 2]


def test_a_clock_needs_a_feature_for_each_head():
    config, before, _ = made()
    narrow = replace(config, t5=replace(config.t5, d_model=5))
    with pytest.raises(ValueError, match=f"takes {CLOCK + 4} features for 4 heads; model.t5.d_mod"):
        structured(narrow, before, PERIOD, jax.random.key(0))


def test_cross_attention_begins_by_finding_what_is_alike_and_copying_it():
    _, _, after = made()
    params = after["params"]
    cross = jax.tree.map(np.asarray, params["decoder"]["stack"]["blocks_0"]["cross"])
    x = np.asarray(params["shared"])[3:299]
    x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    scores = (x @ cross["query"]) @ (x @ cross["key"]).T
    assert np.median(np.abs(scores.argmax(axis=1) - np.arange(len(x)))) <= 2
    copied = x @ cross["value"] @ cross["output"]
    assert (np.sum(copied * x, axis=1) > 0).all()
