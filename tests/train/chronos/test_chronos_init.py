"""A structured start: smooth token tables, waves of positions, cross-attention that copies."""

import jax
import numpy as np
import pytest

from moejax.interop.chronos import initial
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config
from train.chronos_init import BIAS, structured

SIZES = {"d_model": 32, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1}
TOKENS = ChronosConfig(n_tokens=300, context_length=16, prediction_length=4)


def made(*, tied=True, **moe):
    """(config, variables before, variables after)."""
    config = ChronosModelConfig(
        t5=T5Config(vocab_size=320, tie_word_embeddings=tied, **SIZES),
        chronos=ChronosConfig(**vars(TOKENS) | moe),
    )
    before = initial(config, jax.random.key(0))
    after = structured(config, before, jax.random.key(1))
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
    for table in tables.values():
        old, new = np.asarray(table(before)), np.asarray(table(after))
        np.testing.assert_array_equal(old[:2], new[:2])
        np.testing.assert_allclose(new.std(), old.std(), rtol=0.2)
        bins = new[3:299]
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
        assert np.abs(table).max() <= BIAS
        assert len(np.unique(table[..., 1, :])) == table[..., 1, :].size
        if "encoder" in path:  # here, a step before and a step after are on one wave
            half = table.shape[-2] // 2
            before, later = table[..., 1, :], table[..., half + 1, :]
            cosine = (before + later) / 2 / table[..., 0, :]  # of a step: at most 90 degrees
            np.testing.assert_array_less(-1e-5, cosine)
            np.testing.assert_array_less(cosine, 1 + 1e-5)


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
