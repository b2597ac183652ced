"""The report of experts' use: against numpy, and the order of layers."""

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.moe.report import expert_report
from moejax.moe.usage import Usage


def sown(wanted, kept):
    """What a layer sows, as far as the report reads it; the last output is a free expert."""
    wanted, kept = jnp.asarray(wanted), jnp.asarray(kept)
    zero = jnp.zeros(())
    return {"usage": (Usage(wanted, kept, zero, jnp.zeros(len(wanted) - 1), zero, zero, zero, 0),)}


def test_values():
    rng = np.random.default_rng(0)
    wanted = rng.integers(1, 9, (3, 5))
    wanted[1, :4] = [0, 0, 7, 0]
    wanted[2, :4] = 6
    kept = np.minimum(wanted, 4)
    names = ("layers_10", "layers_2", "layers_1")
    layers = {
        name: {"moe": sown(*counts)} for name, *counts in zip(names, wanted, kept, strict=True)
    }
    layers["layers_2"]["moe"]["usage"] += layers["layers_2"]["moe"]["usage"]
    report = expert_report(layers)
    assert report.layers == ("layers_1/moe", "layers_2/moe", "layers_10/moe")
    load = np.stack([wanted[2], 2 * wanted[1], wanted[0]])[:, :4]
    served = np.stack([kept[2], 2 * kept[1], kept[0]])[:, :4]
    np.testing.assert_array_equal(report.routed, load)
    np.testing.assert_array_equal(report.expert_usage, served)
    np.testing.assert_array_equal(report.dropped, (load - served).sum(-1))
    share = load / load.sum(-1, keepdims=True)
    np.testing.assert_allclose(report.imbalance, load.max(-1) / load.mean(-1) - 1, rtol=1e-5)
    ratio = share.max(-1) / (share.min(-1) + 1e-6)
    np.testing.assert_allclose(report.max_min_ratio, ratio, rtol=1e-5)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-30)), -1) / np.log(4)
    np.testing.assert_allclose(report.load_entropy, entropy, atol=1e-6)
    np.testing.assert_allclose(report.variation, (load.std(-1) / load.mean(-1)) ** 2, atol=1e-6)
    assert report.imbalance[0] == report.variation[0] == 0


def test_without_tokens_all_is_finite():
    report = expert_report({"moe": sown([0, 0, 0], [0, 0, 0])})
    values = (report.imbalance, report.max_min_ratio, report.load_entropy, report.variation)
    assert not np.asarray(values).any()


@pytest.mark.parametrize(
    "layers", [{}, {"a": sown([1, 2, 3], [1, 2, 3]), "b": sown([1, 2], [1, 2])}]
)
def test_nothing_to_report(layers):
    with pytest.raises(ValueError, match="needs MoE layers of one size"):
        expert_report(layers)
