"""Lower a MOIRAI-MoE to a program folder that forecasts."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowering.exporter import Check
from lowering.forecaster import export_forecaster
from lowering.ir import TILE, Arch, Policy
from lowering.runtime.distributions import Mixture
from lowering.runtime.forecast import Card
from lowering.runtime.packing import ForecastSizes
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, Tokens
from train.moirai_start import is_workdir, load_model
from train.workdir import Workdir

DEFAULT_CONTEXT, DEFAULT_HORIZON = 512, 96


@dataclass(frozen=True, kw_only=True)
class MoiraiSource:
    """A model with its variables, as they go to the device: float32 until a policy says else."""

    name: str
    config: MoiraiMoEConfig
    variables: Any


def find_moirai(source: str) -> MoiraiSource | None:
    """The model of a checkpoint's folder or of a workdir; None for another system's."""
    folder = Path(source)
    if is_workdir(folder):
        if not isinstance(Workdir(folder).read_config().model, MoiraiMoEConfig):
            return None
    elif not _is_checkpoint(folder):
        return None
    config, variables = load_model(folder)
    return MoiraiSource(name=folder.resolve().name, config=config, variables=variables)


def _is_checkpoint(folder: Path) -> bool:
    """Whether its config.json describes a distribution of patches."""
    try:
        fields = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and {"distr_output", "patch_sizes"} <= fields.keys()


def lower_moirai(
    source: MoiraiSource,
    out: str | Path,
    *,
    arch: Arch = "wormhole_b0",
    policy: Policy = "bfloat16",
    check: Check = "auto",
    **sizes: int | None,
) -> dict[str, Any]:
    """Write the program for rows of fixed sizes (see `choose_sizes`); returns its report by name.

    ValueError for sizes that do not fit the model.
    """
    card = make_card(source.config, choose_sizes(source.config, **sizes))
    report = export_forecaster(
        forward(source.config, card.sizes),
        source.variables,
        card,
        out,
        name=source.name,
        policy=policy,
        arch=arch,
        check=check,
        model=asdict(source.config),
    )
    return {source.name: report}


def choose_sizes(
    config: MoiraiMoEConfig,
    *,
    batch: int | None = None,
    context: int | None = None,
    horizon: int | None = None,
    patch_size: int | None = None,
    targets: int | None = None,
    known_ahead: int | None = None,
    past_only: int | None = None,
) -> ForecastSizes:
    """Sizes of the program: one row, 512 steps of context (fewer where the model is made for fewer
    tokens), 96 of forecast, one target, no covariates, patches of 16 or else the largest ones.
    """
    patch = patch_size or (16 if 16 in config.patch_sizes else config.patch_length)
    if patch not in config.patch_sizes:
        raise ValueError(f"patch_size is {patch}; this model knows {config.patch_sizes}")
    steps = DEFAULT_HORIZON if horizon is None else horizon
    room = max(config.max_seq_len - -(-steps // patch), 1) * patch
    sizes = ForecastSizes(
        batch=1 if batch is None else batch,
        context=min(DEFAULT_CONTEXT, room) if context is None else context,
        horizon=steps,
        patch=patch,
        width=config.patch_length,
        targets=1 if targets is None else targets,
        known_ahead=known_ahead or 0,
        past_only=past_only or 0,
    )
    if sizes.tokens > config.max_seq_len:
        raise ValueError(
            f"context {sizes.context} and horizon {sizes.horizon} of all variates make"
            f" {sizes.tokens} tokens; the model is made for up to max_seq_len={config.max_seq_len}"
        )
    return sizes


def make_card(config: MoiraiMoEConfig, sizes: ForecastSizes) -> Card:
    """What the runtime must know of the model."""
    parts = config.distribution
    mixture = Mixture(
        components=parts.components, fixed_scales=parts.fixed_scales, mixture=parts.mixture
    )
    return Card(sizes=sizes, distribution=mixture, scaling=config.scaling)


def forward(config: MoiraiMoEConfig, sizes: ForecastSizes) -> Callable[..., Any]:
    """The model as `lowering.forecaster.export_forecaster` takes it.

    Every expert works on every token, but in the last layer, where only tokens that are read are
    left, the chosen ones alone.
    """
    few = sizes.batch * sizes.targets <= TILE
    model = MoiraiMoE(
        replace(config, dtype="float32", dispatch="dense"),
        time_limit=sizes.past + sizes.future,
        last_dispatch="indexed" if few else "dense",
    )
    shape = sizes.batch, sizes.tokens
    nowhere, patch_size = np.zeros(shape, bool), np.full(shape, sizes.patch, np.int32)

    def outputs(variables, target, counted, sample, time, variate, read):
        tokens = Tokens(target, counted, sample, time, variate, nowhere, patch_size)
        found: Any = model.apply(variables, tokens, read_at=read, method="outputs")
        return found if config.scaling else found[0]

    def without_scaler(variables, target, *ids_and_read):
        return outputs(variables, target, np.ones(target.shape, bool), *ids_and_read)

    return outputs if config.scaling else without_scaler
