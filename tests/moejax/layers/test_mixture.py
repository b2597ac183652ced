"""The routers' inputs and the weighted sum."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.layers.mixture import (
    StatsRouter,
    TimeRouter,
    mixture,
    stats_router,
    time_router,
    window_statistics,
)


def test_mixture_weighs_by_expert_and_channel():
    heads = jnp.asarray([[[[1.0, 10.0]], [[2.0, 20.0]]]])  # [1, K 2, P 1, C 2]
    gate = jnp.asarray([[[0.25, 1.0], [0.75, 0.0]]])[:, :, None, :]
    np.testing.assert_allclose(mixture(heads, gate), [[[1.75, 10.0]]])
    np.testing.assert_allclose(mixture(heads, gate[..., :1]), [[[1.75, 17.5]]])


def test_window_statistics():
    x = jnp.asarray([[[1.0, 5.0], [3.0, 5.0]]])
    expected = [[2.0, 5.0, 1.0, 1e-6, 1.0, 5.0, 3.0, 5.0]]  # means, stds, mins, maxs
    np.testing.assert_allclose(window_statistics(x), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: window_statistics(x).sum())(x)
    assert np.isfinite(gradient).all()


def test_time_router_columns_are_expert_major():
    bias = jnp.log(jnp.asarray([1.0, 2.0, 3.0, 2.0]))  # K 2, C 2: column k * C + c
    weights = jnp.zeros((1, 4)), jnp.zeros(4), jnp.zeros((4, 4)), bias
    gate = time_router(jnp.zeros((1, 1)), *weights, num_experts=2)
    np.testing.assert_allclose(gate, [[[0.25, 0.5], [0.75, 0.5]]], rtol=1e-6)
    dropped = jnp.asarray([[[0, 0], [1, 0]]])
    gate = time_router(jnp.zeros((1, 1)), *weights, dropped, num_experts=2)
    np.testing.assert_allclose(gate, [[[0.0, 0.5], [1.0, 0.5]]], rtol=1e-6)


def test_head_dropout_drops_the_asked_share(getkey):
    router = TimeRouter(
        num_experts=3, num_channels=4, num_time_features=2, num_hidden=8, head_dropout=0.4
    )
    mark = jnp.zeros((500, 2))
    variables = router.init(getkey(), mark)
    gate = router.apply(variables, mark, train=True, rngs={"dropout": getkey()})
    all_dropped = np.isclose(np.asarray(gate), 1 / 3).all(axis=1).mean()
    dropped = (np.asarray(gate) == 0).mean() + all_dropped
    np.testing.assert_allclose(dropped, 0.4, atol=0.04)
    np.testing.assert_allclose(gate.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        router.apply(variables, mark), router.apply(variables, mark, train=False)
    )


def test_stats_router_by_hand():
    x = jnp.asarray([[[1.0], [3.0]]])  # mean 2, std 1, min 1, max 3
    hidden = jnp.asarray([[1.0, -1.0]] * 4), jnp.zeros(2)
    output = jnp.asarray([[1.0], [5.0]]), jnp.asarray([0.5])
    np.testing.assert_allclose(stats_router(x, (hidden, output)), [[7.5]], rtol=1e-6)


def test_stats_router_sizes(getkey):
    x = jnp.ones((2, 8, 3))
    router = StatsRouter(num_experts=4, num_channels=3, num_hidden=16, num_layers=3, top_k=2)
    logits, gate = router.init_with_output(getkey(), x)[0]
    assert (logits.shape, gate.shape) == ((2, 4), (2, 4))
    assert ((np.asarray(gate) > 0).sum(axis=-1) == 2).all()
    params = jax.eval_shape(router.init, getkey(), x)["params"]
    kernels = {name: leaf["kernel"].shape for name, leaf in params.items()}
    assert kernels == {"hidden_0": (12, 16), "hidden_1": (16, 16), "output": (16, 4)}
