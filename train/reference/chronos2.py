"""Recorded runs of Chronos-2: forecasts of some patches, alone, in groups, with known futures."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.interop.chronos import load_chronos
from moejax.models.chronos2 import Chronos2, Chronos2Config
from moejax.models.chronos_bolt import normalise
from train.reference.lm_runs import COMPILER
from train.reference.rows import Case, Computed, Findings

RELATIVE = 1e-4
_INPUTS = ("context", "group_ids", "future_covariates")


def check_second(case: Case) -> Findings:
    """Everything from config.json, the weights and the contexts."""
    config, variables = load_chronos(case.folder)
    if not isinstance(config, Chronos2Config):
        raise ValueError("config.json is not of a Chronos-2")
    apply = jax.jit(Chronos2(config).apply, static_argnums=2, compiler_options=COMPILER)
    found = Findings(inputs=set(_INPUTS))
    for match in case.matching(r"(?:(.+)/)?(uni|grouped|cov)_n(\d+)"):
        prefix, kind, patches = match.groups()
        name = f"{prefix}/context" if prefix else "context"
        found.inputs.add(name)
        values = jnp.asarray(case.tensor(name))
        groups = None if kind == "uni" else jnp.asarray(case.tensor("group_ids"))
        ahead = jnp.asarray(case.tensor("future_covariates")) if kind == "cov" else None
        quantiles = apply(variables, values, int(patches), groups, ahead)
        scale = float(np.min(normalise(values[:, -config.context_length :])[2]))
        found.computed[match[0]] = Computed(quantiles, RELATIVE * scale, RELATIVE)
    return found
