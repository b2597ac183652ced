"""The next token: filters against plain loops over one row, draws against their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.generation.sampling import (
    SamplingConfig,
    adjust,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    sample,
    seen_tokens,
)

LOGITS = np.random.default_rng(0).normal(size=(5, 37)).astype(np.float32) * 2


def softmax(row):
    powers = np.exp(row.astype(np.float64) - row.max())
    return powers / powers.sum()


def plain_top_k(row, k):
    return set(np.argsort(-row)[:k])


def plain_top_p(row, p):
    kept, total = set(), 0.0
    for token in np.argsort(-row):
        kept.add(token)
        total += softmax(row)[token]
        if total >= p:
            break
    return kept


def plain_min_p(row, p):
    probability = softmax(row)
    return set(np.flatnonzero(probability >= p * probability.max()))


CASES = [
    *((keep_top_k, plain_top_k, k) for k in (1, 3, 36, 37, 1000)),
    *((keep_top_p, plain_top_p, p) for p in (1e-6, 0.3, 0.9, 0.9999)),
    *((keep_min_p, plain_min_p, p) for p in (0.01, 0.3, 1.0)),
]


@pytest.mark.parametrize(("filter_", "plain", "value"), CASES)
def test_filters_keep_what_a_plain_loop_keeps(filter_, plain, value):
    found = np.asarray(filter_(jnp.asarray(LOGITS), value))
    for row, logits in zip(found, LOGITS, strict=True):
        kept = np.isfinite(row)
        assert set(np.flatnonzero(kept)) == plain(logits, value)
        np.testing.assert_array_equal(row[kept], logits[kept])


def test_penalty_makes_seen_tokens_less_probable_and_leaves_the_rest():
    ids = jnp.asarray([[3, 3, 7], [9, 1, 2]])
    mask = jnp.asarray([[True, True, True], [False, True, True]])
    seen = seen_tokens(ids, mask, LOGITS.shape[1])
    assert [set(np.flatnonzero(row)) for row in np.asarray(seen)] == [{3, 7}, {1, 2}]
    found = np.asarray(penalise_repetition(jnp.asarray(LOGITS[:2]), 1.5, seen))
    wanted = np.where(LOGITS[:2] < 0, LOGITS[:2] * 1.5, LOGITS[:2] / 1.5)
    np.testing.assert_allclose(found, np.where(seen, wanted, LOGITS[:2]), rtol=1e-6)


def test_filters_follow_each_other_as_in_transformers():
    """Penalty, then temperature, then the filters on what is left by those before."""
    config = SamplingConfig(temperature=0.5, top_k=10, top_p=0.8, min_p=0.1, repetition_penalty=1.3)
    seen = jnp.zeros(LOGITS.shape, bool).at[:, :5].set(True)
    found = np.asarray(adjust(jnp.asarray(LOGITS), config.knobs(), seen))
    for row, logits in zip(found, LOGITS, strict=True):
        penalised = np.where(logits < 0, logits * 1.3, logits / 1.3)
        wanted = np.where(np.arange(len(logits)) < 5, penalised, logits) / 0.5
        for plain, value in ((plain_top_k, 10), (plain_top_p, 0.8), (plain_min_p, 0.1)):
            kept = plain(wanted, value)
            wanted = np.where(np.isin(np.arange(len(wanted)), list(kept)), wanted, -np.inf)
        np.testing.assert_allclose(row, wanted, rtol=1e-5)


def test_greedy_ignores_keys_and_draws_follow_the_probabilities():
    logits = jnp.asarray(LOGITS[:1])
    keys = jax.random.split(jax.random.key(0), 4000)
    many = jnp.broadcast_to(logits, (4000, LOGITS.shape[1]))
    greedy = np.asarray(sample(many, keys, SamplingConfig(temperature=0.0).knobs()))
    assert set(greedy) == {int(np.argmax(LOGITS[0]))}
    drawn = np.asarray(sample(many, keys, SamplingConfig(temperature=2.0).knobs()))
    counts = np.bincount(drawn, minlength=LOGITS.shape[1]) / 4000
    np.testing.assert_allclose(counts, softmax(LOGITS[0] / 2), atol=0.03)


def test_knobs_hold_only_what_does_something():
    assert SamplingConfig(temperature=0.0, top_k=5, top_p=0.5).knobs() == {}
    assert set(SamplingConfig(temperature=1.0).knobs()) == {"temperature"}
    every = SamplingConfig(temperature=0.7, top_k=5, top_p=0.5, min_p=0.1, repetition_penalty=2)
    assert set(every.knobs()) == {
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingConfig(**wrong)


def test_penalty_asks_for_what_was_seen():
    with pytest.raises(ValueError, match="seen"):
        adjust(jnp.asarray(LOGITS), SamplingConfig(repetition_penalty=2.0).knobs())
