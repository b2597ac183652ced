"""Leaving experts out equals renormalising their gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.models.mole import MoLE, MoLEConfig
from moejax.models.mole_pruning import keep_experts, rarely_used

SIZE = {"seq_len": 12, "pred_len": 4, "num_channels": 3, "num_experts": 4, "kernel_size": 5}
OPTIONS = [
    {"base": "dlinear"},
    {"base": "dlinear", "individual": True},
    {"base": "rlinear", "router": "stats"},
    {"base": "rmlp", "individual": True, "d_model": 8},
]


def make(options):
    config = MoLEConfig(**SIZE, **options)
    x = jax.random.normal(jax.random.key(1), (5, 12, 3))
    mark = jax.random.uniform(jax.random.key(2), (5, 4)) - 0.5
    params = MoLE(config).init(jax.random.key(0), x, mark)["params"]
    return config, jax.tree.map(lambda a: a * 3, params), x, mark


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kept", [(0, 2), (3,), (0, 1, 2, 3)], ids=str)
def test_kept_experts_share_the_weight(options, kept):
    config, params, x, mark = make(options)
    model = MoLE(config).bind({"params": params})
    gate = model.gate(x, mark)[0][:, kept, :]
    window, stats = x, None
    if config.normalises:
        stats = model.revin.stats(x)
        window = model.revin.normalise(x, stats)
    heads = model.heads(window)[:, kept, :, :]
    expected = jnp.sum(heads * (gate / gate.sum(1, keepdims=True))[:, :, None, :], axis=1)
    expected = expected if stats is None else model.revin.restore(expected, stats)
    small, fewer = keep_experts(config, params, kept)
    found = MoLE(small).apply({"params": fewer}, x, mark)
    np.testing.assert_allclose(found.y, expected, atol=2e-5)
    assert found.gate.shape == (5, len(kept), 3)


def test_rarely_used_keeps_the_largest():
    gate = np.array([[0.01], [0.02], [0.97]])[None]
    assert rarely_used(gate, 0.05) == [0, 1]
    assert rarely_used(gate, 1.0) == [0, 1]


@pytest.mark.parametrize("kept", [(), (4,), (1, 1), (-1,)])
def test_experts_that_do_not_exist(kept):
    config, params, _, _ = make(OPTIONS[0])
    with pytest.raises(ValueError, match="distinct numbers from 0 to 3"):
        keep_experts(config, params, kept)
