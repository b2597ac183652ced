"""Speed of the MoE layer: every dispatch on one shape, decoding, and a grid of layers.

The targets are for CPUs; elsewhere the same rows only inform.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train import moe_figures
from train.bench import Row
from train.benchmarks import moe_decode, moe_dispatch, moe_grid
from train.benchmarks.moe_decode import Decode
from train.benchmarks.moe_dispatch import Shape
from train.benchmarks.moe_grid import Grid


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the suite's parts."""

    shape: Shape = field(default_factory=Shape)
    decode: Decode = field(default_factory=Decode)
    grid: Grid = field(default_factory=Grid)


def measure(
    say: Callable[[str], Any] = print, out: Path | None = None, settings: Settings | None = None
) -> list[Row]:
    """All rows of the suite; the plots of the grid go to the folder `out`."""
    settings = settings or Settings()
    rows = moe_dispatch.measure(settings.shape, say)
    rows += moe_decode.measure(settings.decode, say)
    found, speeds, usages = moe_grid.measure(settings.grid, say)
    if out is not None:
        moe_figures.write(out, settings.grid, speeds, usages)
    return rows + found
