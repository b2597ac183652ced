"""Token tables that begin smooth: neighbours alike, special tokens and sizes as they were."""

import jax
import numpy as np
import pytest

from moejax.interop.chronos import initial
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config
from train.chronos_init import structured

SIZES = {"d_model": 32, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1}
TOKENS = ChronosConfig(n_tokens=300, context_length=16, prediction_length=4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("experts", [0, 3])
def test_neighbouring_bins_begin_alike(tied, experts):
    moe = {"use_moe": True, "num_experts": experts, "num_active_experts": 1} if experts else {}
    config = ChronosModelConfig(
        t5=T5Config(vocab_size=320, tie_word_embeddings=tied, **SIZES),
        chronos=ChronosConfig(**vars(TOKENS) | moe),
    )
    before = initial(config, jax.random.key(0))
    after = structured(config, before, jax.random.key(1))
    assert jax.tree.structure(before) == jax.tree.structure(after)
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
