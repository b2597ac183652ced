"""What a network's outputs stand for: one component or a mixture, moved and scaled."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.checks import require_choice
from moejax.distributions.components import KINDS, Kind

WEIGHTS = "weights_logits"


@dataclass(frozen=True, kw_only=True)
class DistributionConfig:
    """Which components, in order. `mixture=False`: the one component alone, without weights.

    `fixed_scales`: the constant of each fixed-scale component, in order; none given: 1e-3 each.
    """

    components: tuple[str, ...] = (
        *("student_t", "normal_fixed_scale"),
        *("negative_binomial", "log_normal"),
    )
    fixed_scales: tuple[float, ...] = ()
    mixture: bool = True

    def __post_init__(self) -> None:
        for name in self.components:
            require_choice("components", name, tuple(KINDS))
        if not self.components or (not self.mixture and len(self.components) > 1):
            allowed = "one or more" if self.mixture else "exactly one, for mixture=False"
            raise ValueError(f"components holds {len(self.components)} names; give {allowed}")
        fixed = sum(KINDS[name].fixed_scale for name in self.components)
        if not self.fixed_scales:
            object.__setattr__(self, "fixed_scales", (1e-3,) * fixed)
        if len(self.fixed_scales) != fixed:
            raise ValueError(
                f"fixed_scales holds {len(self.fixed_scales)} numbers; components has {fixed}"
                " of a fixed scale, each of which needs one"
            )
        if not all(0 < scale < float("inf") for scale in self.fixed_scales):
            raise ValueError(f"fixed_scales is {self.fixed_scales}; all must be positive numbers")

    @property
    def args(self) -> dict[str, int]:
        """Raw parameters of a cell: name -> how many numbers, as a checkpoint names them."""
        weights = {WEIGHTS: len(self.components)} if self.mixture else {}
        names = [self.arg_name(j, arg) for j, kind in self.kinds() for arg in kind.maps]
        return weights | dict.fromkeys(names, 1)

    def kinds(self) -> list[tuple[int, Kind]]:
        """(index, kind) of the components."""
        return [(j, KINDS[name]) for j, name in enumerate(self.components)]

    def arg_name(self, component: int, arg: str) -> str:
        """The full name of a component's argument."""
        return f"components.{component}.{arg}" if self.mixture else arg

    def fixed_scale(self, component: int) -> float:
        """The constant scale of a fixed-scale component."""
        before = self.components[:component]
        return self.fixed_scales[sum(KINDS[name].fixed_scale for name in before)]

    def constrain(self, raw: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Outputs of a network [..., dim] -> parameters [...]; the weights keep [..., K].

        ValueError for missing, superfluous or misshapen ones.
        """
        shapes = {name: jnp.shape(array)[-1:] for name, array in raw.items()}
        wanted = {name: (dim,) for name, dim in self.args.items()}
        if shapes != wanted:
            raise ValueError(f"raw parameters end in {shapes}; {self.components} needs {wanted}")
        params = {WEIGHTS: raw[WEIGHTS]} if self.mixture else {}
        for j, kind in self.kinds():
            for arg, domain_map in kind.maps.items():
                name = self.arg_name(j, arg)
                params[name] = domain_map(jnp.squeeze(raw[name], axis=-1))
        return params


@partial(
    jax.tree_util.register_dataclass, data_fields=["params", "loc", "scale"], meta_fields=["config"]
)
@dataclass(frozen=True, kw_only=True)
class Distribution:
    """y = loc + scale * x with x of the configured components; one distribution per cell.

    `params`: as `DistributionConfig.constrain` gives them, [...]; loc and scale broadcast to that.
    Where an argument has more leading axes than the cells (samples, say), those come first in the
    result too.
    """

    config: DistributionConfig
    params: dict[str, jax.Array]
    loc: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the cells."""
        cells = [array.shape for name, array in self.params.items() if name != WEIGHTS]
        return jnp.broadcast_shapes(*cells, jnp.shape(self.loc), jnp.shape(self.scale))

    def log_prob(self, y: jax.Array) -> jax.Array:
        """Log density; -inf with a gradient of 0 outside the support, NaN for NaN."""
        shape = jnp.broadcast_shapes(jnp.shape(y), self.shape)
        y, loc, scale = (jnp.broadcast_to(a, shape) for a in (y, self.loc, self.scale))
        x = (y - loc) / scale
        terms = [kind.log_prob(args, x) for kind, args in self._components(shape)]
        if not self.config.mixture:
            return terms[0] - jnp.log(scale)
        terms = jnp.stack(terms, axis=-1) + jax.nn.log_softmax(self._weights(shape), axis=-1)
        nowhere = jnp.all(terms == -jnp.inf, axis=-1)
        total = jax.nn.logsumexp(jnp.where(nowhere[..., None], 0.0, terms), axis=-1)
        return jnp.where(nowhere, -jnp.inf, total) - jnp.log(scale)

    def sample(self, key: jax.Array, num_samples: int | None = None) -> jax.Array:
        """One draw of every cell, or `num_samples` of them along a new first axis."""
        shape = self.shape if num_samples is None else (num_samples, *self.shape)
        choice_key, *keys = jax.random.split(key, 1 + len(self.config.components))
        draws = [
            kind.sample(one, args, shape)
            for one, (kind, args) in zip(keys, self._components(shape), strict=True)
        ]
        x = draws[0]
        if self.config.mixture:
            choice = jax.random.categorical(choice_key, self._weights(shape), axis=-1)
            for j, draw in enumerate(draws[1:], 1):
                x = jnp.where(choice == j, draw, x)
        return jnp.broadcast_to(self.loc, shape) + jnp.broadcast_to(self.scale, shape) * x

    def mean(self) -> jax.Array:
        """The mean of every cell."""
        return self.loc + self.scale * self._mix([k.mean(a) for k, a in self._components()])

    def variance(self) -> jax.Array:
        """The variance of every cell, by the law of total variance."""
        parts = self._components()
        means = [kind.mean(args) for kind, args in parts]
        centre = self._mix(means)
        spreads = [
            kind.variance(args) + (mean - centre) ** 2
            for mean, (kind, args) in zip(means, parts, strict=True)
        ]
        return self.scale**2 * self._mix(spreads)

    def quantiles(self, key: jax.Array, levels: Any, num_samples: int) -> jax.Array:
        """[Q, ...]: quantiles of `num_samples` draws, linear between order statistics."""
        return jnp.quantile(self.sample(key, num_samples), jnp.asarray(levels), axis=0)

    def _components(self, shape: tuple[int, ...] | None = None) -> list[tuple[Kind, dict]]:
        """Every component with its arguments, spread over a shape."""
        shape = self.shape if shape is None else shape
        parts = []
        for j, kind in self.config.kinds():
            names = {arg: self.config.arg_name(j, arg) for arg in kind.maps}
            args: dict[str, Any] = {
                arg: jnp.broadcast_to(self.params[name], shape) for arg, name in names.items()
            }
            if kind.fixed_scale:
                args["scale"] = self.config.fixed_scale(j)
            parts.append((kind, args))
        return parts

    def _weights(self, shape: tuple[int, ...]) -> jax.Array:
        logits = self.params[WEIGHTS]
        return jnp.broadcast_to(logits, (*shape, logits.shape[-1]))

    def _mix(self, values: list[jax.Array]) -> jax.Array:
        """The mean over the components by their weights; a weight of 0 counts nothing."""
        if not self.config.mixture:
            return values[0]
        weights = jax.nn.softmax(self._weights(self.shape), axis=-1)
        products = weights * jnp.stack(values, axis=-1)
        return jnp.sum(jnp.where(weights > 0, products, 0.0), axis=-1)
