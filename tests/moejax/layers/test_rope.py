"""Angles of every kind of RoPE, on the host and traced."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.layers.rope import RopeConfig, rope, rope_rows

WIDTH = 8
PLAIN = 10_000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
LONG = {
    "short_factors": (1.0, 1.5, 2.0, 2.5),
    "long_factors": (2.0, 3.0, 4.0, 5.0),
    "original_max_len": 16,
    "factor": 4.0,
}
KINDS = {
    "default": RopeConfig(),
    "linear": RopeConfig(kind="linear", factor=4.0),
    "dynamic": RopeConfig(kind="dynamic", factor=2.0, original_max_len=16),
    "llama3": RopeConfig(kind="llama3", factor=8.0, original_max_len=64),
    "yarn": RopeConfig(kind="yarn", factor=4.0, original_max_len=64),
    "longrope": RopeConfig(kind="longrope", **LONG),
    "interleaved": RopeConfig(interleaved=True),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("length", [12, 40])
def test_traced_positions_give_the_tables_of_the_host(name, length):
    config, positions = KINDS[name], np.arange(length)
    expected = rope_rows(config, WIDTH, positions)
    for limit in (None, length):
        rows = rope_rows(config, WIDTH, jnp.asarray(positions), limit=limit)
        for row, table in zip(rows, expected, strict=True):
            assert row.dtype == table.dtype == np.float32
            np.testing.assert_allclose(row, table, atol=3e-6)


def test_linear_divides_the_angles():
    np.testing.assert_allclose(KINDS["linear"].frequencies(WIDTH), PLAIN / 4)


def test_dynamic_raises_the_base_of_long_texts_only():
    config = KINDS["dynamic"]
    np.testing.assert_allclose(config.frequencies(WIDTH, 16), PLAIN)
    base = 10_000.0 * (2 * 40 / 16 - 1) ** (WIDTH / (WIDTH - 2))
    expected = base ** (-np.arange(0, WIDTH, 2) / WIDTH)
    np.testing.assert_allclose(config.frequencies(WIDTH, 40), expected)


def test_llama3_keeps_fast_pairs_and_divides_slow_ones():
    found = KINDS["llama3"].frequencies(WIDTH)
    turns = 64 * PLAIN / (2 * math.pi)
    assert found[0] == PLAIN[0]
    assert turns[0] > 4
    np.testing.assert_allclose(found[turns < 1], PLAIN[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert np.all((PLAIN[between] / 8 < found[between]) & (found[between] < PLAIN[between]))


def test_yarn_blends_by_turns_and_scales_the_tables():
    config = KINDS["yarn"]
    found = config.frequencies(WIDTH)
    assert found[0] == PLAIN[0]
    np.testing.assert_allclose(found[-1], PLAIN[-1] / 4)
    assert config.magnitude == pytest.approx(0.1 * math.log(4) + 1)
    stated = RopeConfig(
        kind="yarn", factor=4.0, original_max_len=64, mscale=1.0, mscale_all_dim=1.0
    )
    assert stated.magnitude == 1.0
    cos, _ = rope_rows(config, WIDTH, np.zeros(1, int))
    np.testing.assert_allclose(cos, config.magnitude, rtol=1e-6)


def test_longrope_has_factors_for_short_and_for_long_texts():
    config = KINDS["longrope"]
    np.testing.assert_allclose(config.frequencies(WIDTH, 16), PLAIN / LONG["short_factors"])
    np.testing.assert_allclose(config.frequencies(WIDTH, 17), PLAIN / LONG["long_factors"])
    assert config.magnitude == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))


def test_rows_of_their_own_for_each_sequence():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, WIDTH))
    positions = np.stack([np.arange(5), np.arange(5) + 7])
    cos, sin = rope_rows(RopeConfig(), WIDTH, positions)
    turned = rope(x, cos[:, None], sin[:, None])
    for row in range(2):
        alone = rope(x[row], *rope_rows(RopeConfig(), WIDTH, positions[row]))
        np.testing.assert_allclose(turned[row], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "ntk"}, "kind is 'ntk'"),
        ({"kind": "yarn", "factor": 2.0}, "original_max_len is None"),
        ({"base": 0.5}, "base is 0.5"),
        ({"kind": "longrope", "original_max_len": 4}, "needs short_factors and long_factors"),
        (
            {"kind": "llama3", "original_max_len": 4, "low_freq_factor": 4.0},
            "low_freq_factor is 4.0",
        ),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        RopeConfig(**fields)


def test_factors_fit_the_width():
    with pytest.raises(ValueError, match="short_factors has 4 numbers; 6 rotated features need 3"):
        KINDS["longrope"].frequencies(6)
