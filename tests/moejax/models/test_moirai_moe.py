"""MOIRAI-MoE's module: packing, padding, time, options, sizes, gradients."""

from dataclasses import replace
from functools import cache
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.distributions import DistributionConfig
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, Tokens, empty_tokens
from moejax.models.moirai_moe_losses import packed_nll, sample_nll
from moejax.models.moirai_moe_sizes import SIZES
from moejax.moe.usage import aux_loss

# dispatch "dense" is the quickest to compile; tests of their own compare the dispatches
TINY = MoiraiMoEConfig(d_model=64, d_ff=8, num_layers=2, num_experts=6, dispatch="dense")
STUDENT = DistributionConfig(components=("student_t",), mixture=False)
CONFIGS = {
    "published": replace(TINY, dispatch="auto", num_layers=1),
    "three heads": replace(TINY, num_layers=1, d_model=192, patch_sizes=(8,), distribution=STUDENT),
    "patches": replace(TINY, d_model=100, num_layers=1, patch_sizes=(16, 4), routing="nearest"),
    "learned": replace(TINY, routing="learned", num_experts=5, top_k=3, num_shared_experts=2),
}
# the row: sample, variate, tokens, of which the last so many are predicted
LAYOUT = ((1, 0, 5, 2), (1, 1, 5, 1), (2, 0, 4, 1), (0, 0, 2, 0))
T = sum(tokens for _, _, tokens, _ in LAYOUT)


def make_row(config, seed=0):
    """One packed row, with missing cells; the patch size of each sample is one of the config's."""
    rng = np.random.default_rng(seed)
    parts = {name: [] for name in ("sample_id", "time_id", "variate_id", "prediction_mask")}
    for sample, variate, tokens, predicted in LAYOUT:
        parts["sample_id"] += [sample] * tokens
        parts["variate_id"] += [variate] * tokens
        parts["time_id"] += range(tokens)
        parts["prediction_mask"] += [False] * (tokens - predicted) + [True] * predicted
    arrays = {name: np.asarray(values)[None] for name, values in parts.items()}
    sizes = np.asarray(config.patch_sizes)[arrays["sample_id"] % len(config.patch_sizes)]
    shape = 1, T, config.patch_length
    inside = np.arange(config.patch_length) < sizes[..., None]
    observed = (rng.random(shape) < 0.8) & inside & ~arrays["prediction_mask"][..., None]
    target = np.where(observed, rng.normal(3.0, 2.0, shape), 0.0).astype(np.float32)
    return Tokens(target=target, observed_mask=observed, patch_size=sizes, **arrays)


def take(tokens, columns):
    return jax.tree.map(lambda array: array[:, columns], tokens)


def run(config, variables, tokens, **options):
    return jax.jit(lambda v, t: MoiraiMoE(config).apply(v, t, **options))(variables, tokens)


@cache
def start(config):
    """(a row of tokens, variables); drawn by numpy, since initialisers take long to compile."""
    tokens, rng = make_row(config), np.random.default_rng(1)
    shapes = jax.eval_shape(MoiraiMoE(config).init, jax.random.key(1), tokens)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        fan_in = leaf.shape[-2] if len(leaf.shape) > 1 and "variate" not in name else 1
        values = rng.normal(size=leaf.shape) / np.sqrt(1 if "centroids" in name else fan_in)
        return jnp.asarray(1 + 0.2 * values if "scale" in name else values, jnp.float32)

    return tokens, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module", params=CONFIGS)
def built(request):
    config = CONFIGS[request.param]
    tokens, variables = start(config)
    return config, variables, tokens, run(config, variables, tokens)


def assert_same(one, other, columns, atol=2e-5):
    """All that the first says equals what the second says in these columns."""
    for name, array in one.params.items():
        np.testing.assert_allclose(array, other.params[name][:, columns], atol=atol, err_msg=name)
    np.testing.assert_allclose(one.loc, other.loc[:, columns], atol=atol)
    np.testing.assert_allclose(one.scale, other.scale[:, columns], atol=atol)


def test_a_sample_by_itself_equals_the_sample_in_a_row(built):
    config, variables, tokens, whole = built
    columns = np.flatnonzero(tokens.sample_id[0] == 2)
    assert_same(run(config, variables, take(tokens, columns)), whole, columns)


def test_padding_has_no_say(built):
    config, variables, tokens, whole = built
    padding = (tokens.sample_id == 0)[..., None]
    other = replace(tokens, target=np.where(padding, 1e3, tokens.target))
    real = np.flatnonzero(tokens.sample_id[0])
    found = run(config, variables, other)
    assert_same(jax.tree.map(lambda leaf: leaf[:, real], found), whole, real)


def test_the_future_has_no_say(built):
    """Changes of predicted tokens reach no token of an earlier time; variates see each other."""
    config, variables, tokens, whole = built
    later = tokens.prediction_mask & (tokens.time_id == 4) & (tokens.sample_id == 1)
    inside = np.arange(config.patch_length) < tokens.patch_size[..., None]
    changed = np.where(later[..., None] & inside, tokens.target + 1, tokens.target)
    found = run(config, variables, replace(tokens, target=changed))
    name = next(name for name in whole.params if name.endswith("loc"))
    moved = np.abs(np.asarray(found.params[name] - whole.params[name])).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(moved, ((tokens.sample_id == 1) & (tokens.time_id == 4))[0])


def test_reading_some_tokens_equals_all(built):
    config, variables, tokens, whole = built
    columns = [9, 0, 13]
    assert_same(run(config, variables, tokens, read_at=jnp.asarray([columns])), whole, columns)


def test_order_of_tokens_has_no_say(built):
    config, variables, tokens, whole = built
    order = np.random.default_rng(3).permutation(T)
    assert_same(run(config, variables, take(tokens, order)), whole, order)


def test_a_patch_of_an_unknown_size_says_nothing():
    tokens, variables = start(TINY)
    tokens = replace(tokens, patch_size=np.full_like(tokens.patch_size, 7))
    sown = run(TINY, variables, tokens, mutable=["intermediates"])[1]["intermediates"]
    assert not np.any(sown["encoder_in"][0])
    assert not any(np.any(raw) for raw in sown["raw"][0].values())


@pytest.mark.parametrize("kind", ["farthest", "nearest"])
def test_centroids_decide(kind):
    config = replace(TINY, routing=kind)
    tokens, variables = start(TINY)
    sown = run(config, variables, tokens, mutable=["intermediates"])[1]["intermediates"]
    layer = sown["layers_1"]
    x_TD = np.asarray(layer["ffn_in"][0], np.float64)[0]
    centroid_ED = np.asarray(variables["router_state"]["layers_1"]["moe"]["centroids"])
    distance_TE = np.linalg.norm(x_TD[:, None] - centroid_ED[None], axis=-1)
    sign = -1 if kind == "farthest" else 1
    expected = np.argsort(sign * distance_TE, axis=-1)[:, :2]
    routing = layer["moe"]["routing"][0]
    np.testing.assert_array_equal(routing.index, expected)
    near_Tk = np.exp(-sign * np.take_along_axis(distance_TE, expected, axis=-1))
    np.testing.assert_allclose(
        routing.weight, near_Tk / near_Tk.sum(axis=-1, keepdims=True), atol=1e-5
    )


def loss_of(config, tokens, params, state, **options):
    found, sown = MoiraiMoE(config).apply(
        {"params": params, **state}, tokens, mutable=["moe"], **options
    )
    masks = tokens.observed_mask | True, tokens.prediction_mask, tokens.sample_id, tokens.variate_id
    nll = packed_nll(found.log_prob(jnp.asarray(tokens.target)), *masks)
    return nll + aux_loss(sown["moe"]), sown["moe"]


def test_gradients_are_finite_and_leave_centroids_alone():
    tokens, variables = start(TINY)
    state = {"router_state": variables["router_state"]}
    (_, sown), (grads, moved) = jax.jit(
        jax.value_and_grad(lambda p, s: loss_of(TINY, tokens, p, s), argnums=(0, 1), has_aux=True)
    )(variables["params"], state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(moved))
    wanted_E = np.asarray(sown["layers_1"]["moe"]["usage"][0].wanted)
    moved_E = np.any(grads["layers_1"]["moe"]["experts"]["down"], axis=(1, 2))
    assert not np.any(moved_E & (wanted_E == 0))
    assert moved_E.any()


def test_a_learned_router_is_balanced_by_a_loss():
    config = CONFIGS["learned"]
    tokens, variables = start(config)
    assert "router_state" not in variables
    assert variables["params"]["layers_0"]["moe"]["shared"]["up"].shape == (64, 16)
    sown = run(config, variables, tokens, mutable=["moe"])[1]
    assert float(aux_loss(sown["moe"])) > 0
    tokens, variables = start(TINY)
    assert float(aux_loss(run(TINY, variables, tokens, mutable=["moe"])[1]["moe"])) == 0


@pytest.mark.parametrize("field", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_alone(field):
    one = replace(TINY, num_layers=1)
    config = replace(one, **{field: 0.5})
    tokens, variables = start(one)
    name = "components.0.loc"
    plain = run(one, variables, tokens).params[name]
    np.testing.assert_array_equal(run(config, variables, tokens).params[name], plain)
    drawn = run(config, variables, tokens, train=True, rngs={"dropout": jax.random.key(0)})
    assert not np.allclose(drawn.params[name], plain, atol=1e-3)


def test_bfloat16_is_near_float32():
    tokens, variables = start(TINY)
    exact, found = (
        run(replace(TINY, dtype=dtype), variables, tokens) for dtype in ("float32", "bfloat16")
    )
    assert found.params["weights_logits"].dtype == jnp.float32
    np.testing.assert_array_equal(found.loc, exact.loc)
    difference = np.abs(np.asarray(found.params["weights_logits"] - exact.params["weights_logits"]))
    assert np.median(difference) < 0.02


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("small", 117_025_800, 10_857_480), ("base", 935_066_592, 85_720_032)],
)
def test_published_sizes(name, total, active):
    config = SIZES[name]
    init = MoiraiMoE(config).init
    shapes = jax.eval_shape(init, jax.random.key(0), empty_tokens(config))
    count = sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    layers = [shapes["params"][f"layers_{i}"]["moe"] for i in range(config.num_layers)]
    experts = sum(prod(leaf.shape) for leaf in jax.tree.leaves(layers))
    idle = experts // config.num_experts * (config.num_experts - config.top_k)
    assert (count, count - idle) == (total, active)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 32}, "d_model is 32; it must be at least 64"),
        ({"d_model": 130}, "d_model is 130"),
        ({"patch_sizes": ()}, "patch_sizes is"),
        ({"patch_sizes": (8, 8)}, "give different sizes"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"routing": "random"}, "routing is 'random'"),
        ({"top_k": 7}, "top_k is 7; there are only 6 experts"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_a_wrong_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize("name", ["target", "observed_mask", "time_id", "patch_size"])
def test_misshapen_tokens_are_refused(name):
    tokens = make_row(TINY)
    tokens = replace(tokens, **{name: getattr(tokens, name)[:, :-1, ...][..., :3]})
    with pytest.raises(ValueError, match="has shape"):
        jax.eval_shape(MoiraiMoE(TINY).init, jax.random.key(0), tokens)


def test_losses_by_hand():
    """Mean within each (sample, variate), then over them; what is masked may be infinite."""
    sample = jnp.asarray([[1, 1, 1, 2], [1, 1, 0, 0]])
    variate = jnp.asarray([[0, 0, 1, 0], [0, 0, 0, 0]])
    predicted = jnp.asarray([[True, True, True, False], [False, True, False, False]])
    observed = jnp.ones((2, 4, 2), bool).at[0, 1, 1].set(False)
    log_prob = -jnp.arange(16.0).reshape(2, 4, 2)
    log_prob = jnp.where(observed & predicted[..., None], log_prob, -jnp.inf)
    groups = [(0 + 1 + 2) / 3, (4 + 5) / 2, (10 + 11) / 2]
    masks = observed, predicted, sample, variate
    np.testing.assert_allclose(packed_nll(log_prob, *masks), np.mean(groups), rtol=1e-6)
    np.testing.assert_allclose(
        sample_nll(log_prob, *masks), [groups[0] + groups[1], groups[2]], rtol=1e-6
    )
    nothing = jnp.zeros_like(predicted)
    assert packed_nll(log_prob, observed, nothing, sample, variate) == 0
