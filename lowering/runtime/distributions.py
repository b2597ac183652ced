"""Parameters and draws of predicted distributions, on the host. Numpy only, float64.

Letters: P cells of a patch, K components. A head's outputs stand name after name, N * P for a
parameter of N numbers a cell: number n of cell c at n * P + c.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

WEIGHTS = "weights_logits"
EPS = float(np.finfo(np.float32).eps)
# From this rate on a Poisson count is a rounded normal: its skew, 1e-3, is no longer seen.
NORMAL_RATE = 1e6

Params = dict[str, np.ndarray]
Draw = Callable[[np.random.Generator, Params], np.ndarray]


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x))."""
    return np.logaddexp(0.0, x)


def _identity(x: np.ndarray) -> np.ndarray:
    return x


def _above_two(x: np.ndarray) -> np.ndarray:
    return 2 + softplus(x)


def _floored(x: np.ndarray) -> np.ndarray:
    return np.maximum(softplus(x), EPS)


def _student_t(rng: np.random.Generator, p: Params) -> np.ndarray:
    return p["loc"] + p["scale"] * rng.standard_t(p["df"])


def _normal(rng: np.random.Generator, p: Params) -> np.ndarray:
    return p["loc"] + p["scale"] * rng.standard_normal(p["loc"].shape)


def _laplace(rng: np.random.Generator, p: Params) -> np.ndarray:
    return rng.laplace(p["loc"], p["scale"])


def _log_normal(rng: np.random.Generator, p: Params) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(_normal(rng, p))


def _negative_binomial(rng: np.random.Generator, p: Params) -> np.ndarray:
    """Poisson(Gamma(shape total_count, rate exp(-logits)))."""
    with np.errstate(over="ignore", invalid="ignore"):
        rate = rng.standard_gamma(p["total_count"]) * np.exp(p["logits"])
        many = np.round(rate + np.sqrt(rate) * rng.standard_normal(rate.shape))
    return np.where(rate < NORMAL_RATE, rng.poisson(np.minimum(rate, NORMAL_RATE)), many)


def _pareto(rng: np.random.Generator, p: Params) -> np.ndarray:
    return p["scale"] * np.exp(rng.standard_exponential(p["alpha"].shape) / p["alpha"])


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A family: the map from a network's number to each parameter, and a draw of every cell."""

    maps: Mapping[str, Callable[[np.ndarray], np.ndarray]]
    draw: Draw
    fixed_scale: bool = False


_LOC_SCALE = {"loc": _identity, "scale": _floored}
KINDS: dict[str, Kind] = {
    "student_t": Kind(maps={"df": _above_two, **_LOC_SCALE}, draw=_student_t),
    "normal": Kind(maps=_LOC_SCALE, draw=_normal),
    "normal_fixed_scale": Kind(maps={"loc": _identity}, draw=_normal, fixed_scale=True),
    "negative_binomial": Kind(
        maps={"total_count": softplus, "logits": _identity}, draw=_negative_binomial
    ),
    "log_normal": Kind(maps=_LOC_SCALE, draw=_log_normal),
    "laplace": Kind(maps=_LOC_SCALE, draw=_laplace),
    "laplace_fixed_scale": Kind(maps={"loc": _identity}, draw=_laplace, fixed_scale=True),
    "pareto": Kind(maps={"scale": softplus, "alpha": _above_two}, draw=_pareto),
}


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Which components in which order; `mixture=False`: the one component, without weights.

    `fixed_scales`: the constant of each component of fixed scale, in order. ValueError for names
    that are unknown and numbers that do not fit.
    """

    components: tuple[str, ...]
    fixed_scales: tuple[float, ...] = ()
    mixture: bool = True

    def __post_init__(self):
        unknown = [name for name in self.components if name not in KINDS]
        if unknown or not self.components or (not self.mixture and len(self.components) > 1):
            raise ValueError(
                f"components are {self.components}; they must be one or more of {', '.join(KINDS)},"
                " and exactly one without weights"
            )
        if len(self.fixed_scales) != sum(KINDS[name].fixed_scale for name in self.components):
            raise ValueError(
                f"fixed_scales are {self.fixed_scales}; {self.components} needs one for each"
                " component of fixed scale"
            )

    def outputs(self) -> list[tuple[int, str, int]]:
        """(component, parameter, numbers a cell) of a head's outputs in order; weights first, as
        component -1.
        """
        weights = [(-1, WEIGHTS, len(self.components))] if self.mixture else []
        names = enumerate(self.components)
        return weights + [(j, arg, 1) for j, name in names for arg in KINDS[name].maps]

    @property
    def width(self) -> int:
        """Numbers of a head for each cell."""
        return sum(count for _, _, count in self.outputs())

    def parameters(self, head: np.ndarray) -> tuple[np.ndarray | None, list[Params]]:
        """(logits of the weights [.., P, K] or None, parameters [.., P] of each component).

        `head`: [.., width * P].
        """
        cells = head.shape[-1] // self.width
        numbers = head.astype(np.float64).reshape(*head.shape[:-1], self.width, cells)
        logits, params = None, [{} for _ in self.components]
        place = 0
        for component, name, count in self.outputs():
            part = numbers[..., place : place + count, :]
            place += count
            if component < 0:
                logits = np.swapaxes(part, -1, -2)
            else:
                convert = KINDS[self.components[component]].maps[name]
                params[component][name] = convert(part[..., 0, :])
        scales = iter(self.fixed_scales)
        for kind, found in zip((KINDS[name] for name in self.components), params, strict=True):
            if kind.fixed_scale:
                found["scale"] = np.full_like(found["loc"], next(scales))
        return logits, params

    def draw(self, head: np.ndarray, loc: Any, scale: Any, rng: np.random.Generator) -> np.ndarray:
        """One draw of each cell, loc + scale * x, finite: [.., width * P] -> [.., P]."""
        logits, params = self.parameters(head)
        kinds = [KINDS[name] for name in self.components]
        draws = [kind.draw(rng, found) for kind, found in zip(kinds, params, strict=True)]
        x = draws[0]
        if logits is not None:
            # the largest of logits and Gumbel noise is a choice by softmax
            chosen = np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1)
            x = np.take_along_axis(np.stack(draws), chosen[None], axis=0)[0]
        most = float(np.finfo(np.float32).max)
        return np.clip(loc + scale * x, -most, most)
