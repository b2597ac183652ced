"""Densities, moments and samples against scipy; supports, gradients, mixtures, affine maps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy import stats
from scipy.special import gammaln

from moejax.distributions import KINDS, WEIGHTS, Distribution, DistributionConfig

RAW = {
    "df": (-4.0, 1.5),
    "loc": (-0.7, 0.4),
    "scale": (-1.0, 0.3),
    "total_count": (0.2, 3.0),
    "logits": (-0.8, 0.9),
    "alpha": (0.5, 4.0),
}
SCIPY = {
    "student_t": lambda a: stats.t(a["df"], a["loc"], a["scale"]),
    "normal": lambda a: stats.norm(a["loc"], a["scale"]),
    "normal_fixed_scale": lambda a: stats.norm(a["loc"], 0.05),
    "log_normal": lambda a: stats.lognorm(a["scale"], 0, np.exp(a["loc"])),
    "negative_binomial": lambda a: stats.nbinom(a["total_count"], 1 / (1 + np.exp(a["logits"]))),
    "laplace": lambda a: stats.laplace(a["loc"], a["scale"]),
    "laplace_fixed_scale": lambda a: stats.laplace(a["loc"], 0.05),
    "pareto": lambda a: stats.pareto(a["alpha"], 0, a["scale"]),
}
ALL = tuple(KINDS)


def plain(name: str, raw: dict[str, np.ndarray] | None = None) -> Distribution:
    """One component in two cells."""
    fixed = (0.05,) if KINDS[name].fixed_scale else ()
    config = DistributionConfig(components=(name,), fixed_scales=fixed, mixture=False)
    raw = raw or {arg: np.asarray(RAW[arg], np.float32) for arg in config.args}
    params = config.constrain({arg: jnp.asarray(value)[:, None] for arg, value in raw.items()})
    return Distribution(config=config, params=params, loc=jnp.zeros(1), scale=jnp.ones(1))


def mixture(names: tuple[str, ...] = ALL, loc: float = 0.0, scale: float = 1.0) -> Distribution:
    fixed = tuple(0.05 for name in names if KINDS[name].fixed_scale)
    config = DistributionConfig(components=names, fixed_scales=fixed)
    raw = {
        arg: jnp.asarray(RAW[arg.split(".")[-1]])[:, None] for arg in config.args if arg != WEIGHTS
    }
    weights = jnp.linspace(-1, 1, 2 * len(names)).reshape(2, len(names))
    params = config.constrain({WEIGHTS: weights, **raw})
    return Distribution(
        config=config, params=params, loc=jnp.full(1, loc), scale=jnp.full(1, scale)
    )


def scipy_of(name: str, params: dict[str, jax.Array], prefix: str = ""):
    args = {arg: np.asarray(params[prefix + arg], np.float64) for arg in KINDS[name].maps}
    return SCIPY[name](args)


@pytest.mark.parametrize("name", ALL)
def test_density_and_moments_are_scipys(name):
    ours = plain(name)
    theirs = scipy_of(name, ours.params)
    log_density = theirs.logpmf if name == "negative_binomial" else theirs.logpdf
    for x in (-1.5, 0.0, 0.35, 1.0, 2.0, 7.0):
        if name == "negative_binomial" and x % 1:
            continue
        np.testing.assert_allclose(ours.log_prob(jnp.full(2, x)), log_density(x), 2e-5, 2e-5)
    np.testing.assert_allclose(ours.mean(), theirs.mean(), 1e-5)
    np.testing.assert_allclose(ours.variance(), theirs.var(), 2e-4)


@pytest.mark.parametrize("name", ALL)
def test_samples_follow_the_distribution(name):
    ours = plain(name)
    drawn = np.asarray(jax.jit(lambda key: ours.sample(key, 4000))(jax.random.key(3)))
    assert drawn.shape == (4000, 2)
    for cell in range(2):
        params = {arg: value[cell] for arg, value in ours.params.items()}
        theirs = scipy_of(name, params)
        levels = np.linspace(0.05, 0.95, 19)
        # the share of draws below a quantile; its deviation is at most 0.5 / sqrt(4000) = 0.008
        at = theirs.ppf(levels)
        share = (drawn[:, cell, None] <= at).mean(axis=0)
        np.testing.assert_allclose(share, theirs.cdf(at), atol=0.035)


def test_negative_binomial_is_a_density_between_whole_numbers():
    """x may be any number >= 0, as the published model uses it."""
    ours = plain("negative_binomial")
    count, logits = (np.asarray(ours.params[arg], np.float64) for arg in ("total_count", "logits"))
    x = 1.3
    wanted = gammaln(count + x) - gammaln(1 + x) - gammaln(count)
    wanted += -count * np.log1p(np.exp(logits)) - x * np.log1p(np.exp(-logits))
    np.testing.assert_allclose(ours.log_prob(jnp.full(2, x)), wanted, 1e-5)


@pytest.mark.parametrize("name", ["log_normal", "negative_binomial", "pareto"])
def test_outside_the_support_the_gradient_is_zero(name):
    def at(params, x):
        return plain(name, params).log_prob(x)

    raw = {arg: np.asarray(RAW[arg], np.float32) for arg in KINDS[name].maps}
    x = jnp.asarray([-2.0, -1e-3])
    assert np.all(np.asarray(at(raw, x)) == -np.inf)
    grads = jax.grad(lambda raw, x: jnp.sum(at(raw, x)), argnums=(0, 1))(raw, x)
    for grad in jax.tree.leaves(grads):
        np.testing.assert_array_equal(grad, 0.0)


def test_a_mixture_is_the_weighted_sum_of_its_components():
    ours = mixture(loc=3.0, scale=2.0)
    y = jnp.asarray([5.0, 9.0])
    weights = np.asarray(jax.nn.softmax(ours.params[WEIGHTS], axis=-1), np.float64)
    parts = []
    for name in ALL:
        alone = plain(name, {arg: np.asarray(RAW[arg], np.float32) for arg in KINDS[name].maps})
        parts.append(np.exp(np.asarray(alone.log_prob((y - 3) / 2), np.float64)))
    density = np.sum(weights.T * np.stack(parts), axis=0) / 2
    np.testing.assert_allclose(ours.log_prob(y), np.log(density), rtol=1e-5)


def test_moments_of_a_mixture_are_those_of_its_samples():
    ours = mixture(("laplace", "log_normal", "normal", "negative_binomial"), loc=-4.0, scale=3.0)
    drawn = np.asarray(jax.jit(lambda key: ours.sample(key, 40_000))(jax.random.key(0)))
    np.testing.assert_allclose(drawn.mean(axis=0), ours.mean(), atol=0.15)
    np.testing.assert_allclose(drawn.var(axis=0), ours.variance(), rtol=0.1)


def test_quantiles_are_those_of_the_samples():
    ours, key = mixture(("normal", "laplace")), jax.random.key(1)
    wanted = np.quantile(ours.sample(key, 100), (0.1, 0.9), axis=0)
    np.testing.assert_allclose(ours.quantiles(key, (0.1, 0.9), 100), wanted, rtol=1e-6)


def test_where_no_component_reaches_the_gradient_is_zero():
    def total(weights):
        mixed = mixture(("log_normal", "pareto"))
        params = {**mixed.params, WEIGHTS: weights}
        moved = Distribution(config=mixed.config, params=params, loc=mixed.loc, scale=mixed.scale)
        logs = moved.log_prob(jnp.asarray([-1.0, 2.0]))
        assert logs.shape == (2,)
        return jnp.sum(jnp.where(jnp.isfinite(logs), logs, 0.0))

    grad = np.asarray(jax.grad(total)(jnp.zeros((2, 2))))
    np.testing.assert_array_equal(grad[0], 0.0)
    assert np.all(grad[1] != 0)


@partial(jax.jit, static_argnames="names")
def _value_and_grads(names, raw, y, loc, scale):
    def total(raw, y):
        config = DistributionConfig(components=names)
        return jnp.sum(
            Distribution(
                config=config, params=config.constrain(raw), loc=loc, scale=scale
            ).log_prob(y)
        )

    return jax.value_and_grad(total, argnums=(0, 1))(raw, y)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_published_mixture_has_finite_gradients_everywhere(data):
    config = DistributionConfig()
    number = st.floats(-60, 60, width=32)
    raw = {
        name: jnp.asarray(data.draw(st.lists(number, min_size=dim, max_size=dim)), jnp.float32)
        for name, dim in config.args.items()
    }
    y = jnp.float32(data.draw(st.floats(-1e4, 1e4, width=32)))
    scale = jnp.float32(data.draw(st.floats(2**-8, 1e3, width=32)))
    value, grads = _value_and_grads(config.components, raw, y, jnp.float32(1.5), scale)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(grad)) for grad in jax.tree.leaves(grads))


def test_missing_values_stay_missing():
    for name in ALL:
        assert np.all(np.isnan(plain(name).log_prob(jnp.full(2, jnp.nan))))


def test_extremes_of_the_raw_parameters():
    """What underflows to 0 or rounds to 2 has its limit, not NaN."""
    low, high = np.full(2, -200.0, np.float32), np.full(2, 60.0, np.float32)
    counts = plain("negative_binomial", {"total_count": low, "logits": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(counts.log_prob(jnp.asarray([0.0, 2.0])), [0.0, -np.inf])
    heavy = plain("student_t", {"df": low, "loc": low * 0, "scale": high})
    assert np.all(np.isinf(heavy.variance()))
    wide = plain("negative_binomial", {"total_count": high, "logits": np.full(2, 40.0, np.float32)})
    drawn = jax.jit(lambda key: wide.sample(key, 500))(jax.random.key(0))
    np.testing.assert_allclose(drawn.mean(axis=0), wide.mean(), rtol=0.05)
    nowhere = plain("pareto", {"scale": low, "alpha": low})
    np.testing.assert_array_equal(nowhere.log_prob(jnp.ones(2)), -np.inf)
    assert np.all(np.isinf(nowhere.variance()))
    tiny = plain("normal", {"loc": low * 0, "scale": low})
    np.testing.assert_allclose(tiny.params["scale"], np.finfo(np.float32).eps)


def test_samples_lie_along_a_first_axis_and_scores_follow():
    ours = mixture(("normal", "laplace"))
    drawn = ours.sample(jax.random.key(0), 3)
    assert drawn.shape == (3, 2)
    assert ours.sample(jax.random.key(0)).shape == (2,)
    np.testing.assert_allclose(ours.log_prob(drawn)[1], ours.log_prob(drawn[1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": ("cauchy",)}, "components is 'cauchy'; choose one of 'student_t'"),
        ({"components": ()}, "components holds 0 names; give one or more"),
        ({"mixture": False}, "components holds 4 names; give exactly one"),
        ({"fixed_scales": (1e-3, 1.0)}, "fixed_scales holds 2 numbers; components has 1"),
        ({"fixed_scales": (0.0,)}, "must be positive"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistributionConfig(**settings)


def test_wrong_raw_parameters_are_refused():
    config = DistributionConfig(components=("normal",), mixture=False)
    with pytest.raises(ValueError, match="raw parameters end in"):
        config.constrain({"loc": jnp.zeros((2, 1))})


def test_names_are_those_of_the_published_checkpoints():
    assert DistributionConfig().args == {
        "weights_logits": 4,
        **{f"components.0.{arg}": 1 for arg in ("df", "loc", "scale")},
        "components.1.loc": 1,
        "components.2.total_count": 1,
        "components.2.logits": 1,
        "components.3.loc": 1,
        "components.3.scale": 1,
    }
    plain_t = DistributionConfig(components=("student_t",), mixture=False)
    assert plain_t.args == {"df": 1, "loc": 1, "scale": 1}


@pytest.mark.parametrize("case", ["a_univariate", "a_packed", "b_multipatch", "c_student_t"])
def test_recorded_densities_and_moments(shared, case):
    folder = shared / "reference/moirai_moe"
    wanted = load_file(folder / f"{case}.outputs.safetensors")
    target = load_file(folder / f"{case}.inputs.safetensors")["loglik_target"]
    plain_t = {"components": ("student_t",), "mixture": False}
    config = DistributionConfig(**(plain_t if case == "c_student_t" else {}))
    ours = Distribution(
        config=config,
        params={name: jnp.asarray(wanted[f"param.{name}"]) for name in config.args},
        loc=jnp.asarray(wanted["loc"]),
        scale=jnp.asarray(wanted["scale"]),
    )
    log_prob, mean, variance = jax.jit(
        lambda ours, y: (ours.log_prob(y), ours.mean(), ours.variance())
    )(ours, jnp.asarray(target))
    np.testing.assert_allclose(log_prob, wanted["loglik"], atol=5e-3)
    np.testing.assert_allclose(mean, wanted["mean"], 1e-5, 5e-5)
    np.testing.assert_allclose(variance, wanted["variance"], 1e-4, 1e-3)
