"""A MOIRAI-MoE as a program folder that forecasts: the program, and what the host must know.

    forecaster.json     sizes, distribution
    program.json ...    the folder of one program, as `lowering.export` writes it

`lowering.runtime.forecast` draws with it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lowering.exporter import export
from lowering.runtime.forecast import INPUTS, Card
from lowering.runtime.head import FORECASTER
from lowering.runtime.packing import ForecastSizes, Series, pack

Function = Callable[..., Any]


def export_forecaster(
    function: Function, params: Any, card: Card, folder: str | Path, **options: Any
) -> dict[str, Any]:
    """Write the program of `function(params, *inputs)` for the card's sizes; returns its report.

    `function` takes the inputs of `sample_inputs` in order, and gives the head's outputs [B, C, M]
    of the tokens that are read, and, with scaling, location and scale [B, T, 1] of all. Options as
    those of `lowering.export`.
    """
    report = export(function, params, sample_inputs(card), folder, **options)
    (Path(folder) / FORECASTER).write_text(json.dumps(card.to_json(), indent=1))
    return report


def sample_inputs(card: Card, seed: int = 0) -> dict[str, np.ndarray]:
    """A row for each of seeded random walks with gaps; the first one is shorter than the context.

    target [B, T, P] float32; counted [B, T, P] bool, only with scaling: cells for the scaler;
    sample, time, variate [B, T] int32; read [B, C] int32: tokens whose next patch is asked for.
    """
    sizes, rng = card.sizes, np.random.default_rng(seed)
    rows = [pack(_walk(rng, sizes, short=row == 0), sizes) for row in range(sizes.batch)]
    inputs = {name: np.stack([getattr(row, name) for row in rows]) for name in INPUTS[:-1]}
    inputs["read"] = np.tile(sizes.read_at(0), (sizes.batch, 1))
    return {name: inputs[name] for name in INPUTS if card.scaling or name != "counted"}


def _walk(rng: np.random.Generator, sizes: ForecastSizes, *, short: bool) -> Series:
    length = max(sizes.context - (sizes.patch if short else 0), 1)
    gaps = rng.random((sizes.targets, length)) < 0.05
    gaps[:, -1] = False

    def walk(variates: int, steps: int) -> np.ndarray:
        return 5 + np.cumsum(rng.standard_normal((variates, steps)), axis=1)

    return Series(
        target=np.where(gaps, np.nan, walk(sizes.targets, length)),
        known_ahead=walk(sizes.known_ahead, length + sizes.horizon) if sizes.known_ahead else None,
        past_only=walk(sizes.past_only, length) if sizes.past_only else None,
    )
