"""The kinds of component distributions: density, sampling, moments, maps of the arguments.

A function of a kind gets its arguments as arrays of one shape (a fixed scale: a number) and a value
of that shape. Where a value lies outside the support the log density is -inf with a gradient of 0;
NaN gives NaN. Arguments are called as in the published checkpoints of MOIRAI.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

Args = Mapping[str, Any]
LOG_2PI = float(np.log(2 * np.pi))
# From this rate on a Poisson count is a rounded normal: its skew, 1e-3, is no longer seen.
NORMAL_RATE = 1e6


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A component. `maps`: argument -> map from the real line, in the order of a checkpoint.

    `fixed_scale`: the argument `scale` is a constant of the config, not an output of the model.
    """

    maps: Mapping[str, Callable[[jax.Array], jax.Array]]
    log_prob: Callable[[Args, jax.Array], jax.Array]
    sample: Callable[[jax.Array, Args, tuple[int, ...]], jax.Array]
    mean: Callable[[Args], jax.Array]
    variance: Callable[[Args], jax.Array]
    fixed_scale: bool = False


def identity(raw: jax.Array) -> jax.Array:
    """A parameter on the whole real line."""
    return raw


def above_two(raw: jax.Array) -> jax.Array:
    """2 + softplus: the variance exists."""
    return 2 + jax.nn.softplus(raw)


def floored(raw: jax.Array) -> jax.Array:
    """Softplus, not below the machine epsilon of its dtype."""
    return jnp.maximum(jax.nn.softplus(raw), jnp.finfo(raw.dtype).eps)


def _where(inside: jax.Array, x: jax.Array, safe: Any, density: Callable) -> jax.Array:
    """density(x) inside, -inf elsewhere; the density never sees what is outside."""
    return jnp.where(inside, density(jnp.where(inside, x, safe)), -jnp.inf)


def _student_t(args: Args, x: jax.Array) -> jax.Array:
    df = args["df"]
    z = (x - args["loc"]) / args["scale"]
    norm = gammaln((df + 1) / 2) - gammaln(df / 2) - 0.5 * jnp.log(df * np.pi)
    return norm - jnp.log(args["scale"]) - (df + 1) / 2 * jnp.log1p(z * z / df)


def _student_t_sample(key: jax.Array, args: Args, shape: tuple[int, ...]) -> jax.Array:
    return args["loc"] + args["scale"] * jax.random.t(key, args["df"], shape)


def _student_t_variance(args: Args) -> jax.Array:
    """Infinite where rounding has left the degrees of freedom at 2."""
    excess = args["df"] - 2
    ratio = args["df"] / jnp.where(excess > 0, excess, 1)
    return jnp.where(excess > 0, args["scale"] ** 2 * ratio, jnp.inf)


def _normal(args: Args, x: jax.Array) -> jax.Array:
    z = (x - args["loc"]) / args["scale"]
    return -0.5 * z * z - jnp.log(args["scale"]) - 0.5 * LOG_2PI


def _normal_sample(key: jax.Array, args: Args, shape: tuple[int, ...]) -> jax.Array:
    return args["loc"] + args["scale"] * jax.random.normal(key, shape, args["loc"].dtype)


def _laplace(args: Args, x: jax.Array) -> jax.Array:
    return -jnp.abs(x - args["loc"]) / args["scale"] - jnp.log(2 * args["scale"])


def _laplace_sample(key: jax.Array, args: Args, shape: tuple[int, ...]) -> jax.Array:
    return args["loc"] + args["scale"] * jax.random.laplace(key, shape, args["loc"].dtype)


def _loc(args: Args) -> jax.Array:
    return args["loc"]


def _spread(factor: float) -> Callable[[Args], jax.Array]:
    """Variance of a family of location and scale: factor * scale^2."""
    return lambda args: jnp.full_like(args["loc"], factor) * args["scale"] ** 2


def _log_normal(args: Args, x: jax.Array) -> jax.Array:
    def density(x: jax.Array) -> jax.Array:
        return _normal(args, jnp.log(x)) - jnp.log(x)

    return _where(~(x <= 0), x, 1.0, density)


def _log_normal_mean(args: Args) -> jax.Array:
    return jnp.exp(args["loc"] + args["scale"] ** 2 / 2)


def _log_normal_variance(args: Args) -> jax.Array:
    square = args["scale"] ** 2
    return jnp.expm1(square) * jnp.exp(2 * args["loc"] + square)


def _negative_binomial(args: Args, x: jax.Array) -> jax.Array:
    """On any x >= 0, whole or not. Where total_count is 0 all the mass lies on 0."""
    count, logits = args["total_count"], args["logits"]
    mass = count > 0
    some = jnp.where(mass, count, 1)

    def density(x: jax.Array) -> jax.Array:
        choose = gammaln(some + x) - gammaln(1 + x) - gammaln(some)
        chance = some * jax.nn.log_sigmoid(-logits) + x * jax.nn.log_sigmoid(logits)
        return jnp.where(mass, choose + chance, jnp.where(x > 0, -jnp.inf, 0.0))

    return _where(~(x < 0), x, 1.0, density)


def _negative_binomial_sample(key: jax.Array, args: Args, shape: tuple[int, ...]) -> jax.Array:
    """Poisson(Gamma(shape total_count, rate exp(-logits)))."""
    gamma_key, poisson_key, normal_key = jax.random.split(key, 3)
    rate = jax.random.gamma(gamma_key, args["total_count"], shape) * jnp.exp(args["logits"])
    few = jax.random.poisson(poisson_key, jnp.minimum(rate, NORMAL_RATE), shape).astype(rate.dtype)
    many = jnp.round(rate + jnp.sqrt(rate) * jax.random.normal(normal_key, shape, rate.dtype))
    return jnp.where(rate < NORMAL_RATE, few, many)


def _negative_binomial_mean(args: Args) -> jax.Array:
    return args["total_count"] * jnp.exp(args["logits"])


def _negative_binomial_variance(args: Args) -> jax.Array:
    return _negative_binomial_mean(args) / jax.nn.sigmoid(-args["logits"])


def _pareto(args: Args, x: jax.Array) -> jax.Array:
    """A scale that has rounded to 0 has no density anywhere."""
    scale, alpha = args["scale"], args["alpha"]
    some = jnp.where(scale > 0, scale, 1.0)

    def density(x: jax.Array) -> jax.Array:
        return jnp.log(alpha) + alpha * jnp.log(some) - (alpha + 1) * jnp.log(x)

    return _where(~(x < scale) & (scale > 0), x, some, density)


def _pareto_sample(key: jax.Array, args: Args, shape: tuple[int, ...]) -> jax.Array:
    exponential = jax.random.exponential(key, shape, args["scale"].dtype)
    return args["scale"] * jnp.exp(exponential / args["alpha"])


def _pareto_mean(args: Args) -> jax.Array:
    return args["alpha"] * args["scale"] / (args["alpha"] - 1)


def _pareto_variance(args: Args) -> jax.Array:
    """Infinite where rounding has left alpha at 2."""
    scale, alpha = args["scale"], args["alpha"]
    some = jnp.where(alpha > 2, alpha, 3.0)
    variance = scale**2 * some / ((some - 1) ** 2 * (some - 2))
    return jnp.where(alpha > 2, variance, jnp.inf)


_NORMAL = {
    "log_prob": _normal,
    "sample": _normal_sample,
    "mean": _loc,
    "variance": _spread(1.0),
}
_LAPLACE = {
    "log_prob": _laplace,
    "sample": _laplace_sample,
    "mean": _loc,
    "variance": _spread(2.0),
}
_LOC_SCALE = {"loc": identity, "scale": floored}

KINDS: dict[str, Kind] = {
    "student_t": Kind(
        maps={"df": above_two, **_LOC_SCALE},
        log_prob=_student_t,
        sample=_student_t_sample,
        mean=_loc,
        variance=_student_t_variance,
    ),
    "normal": Kind(maps=_LOC_SCALE, **_NORMAL),
    "normal_fixed_scale": Kind(maps={"loc": identity}, fixed_scale=True, **_NORMAL),
    "negative_binomial": Kind(
        maps={"total_count": jax.nn.softplus, "logits": identity},
        log_prob=_negative_binomial,
        sample=_negative_binomial_sample,
        mean=_negative_binomial_mean,
        variance=_negative_binomial_variance,
    ),
    "log_normal": Kind(
        maps=_LOC_SCALE,
        log_prob=_log_normal,
        sample=lambda key, args, shape: jnp.exp(_normal_sample(key, args, shape)),
        mean=_log_normal_mean,
        variance=_log_normal_variance,
    ),
    "laplace": Kind(maps=_LOC_SCALE, **_LAPLACE),
    "laplace_fixed_scale": Kind(maps={"loc": identity}, fixed_scale=True, **_LAPLACE),
    "pareto": Kind(
        maps={"scale": jax.nn.softplus, "alpha": above_two},
        log_prob=_pareto,
        sample=_pareto_sample,
        mean=_pareto_mean,
        variance=_pareto_variance,
    ),
}
