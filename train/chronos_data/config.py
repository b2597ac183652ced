"""Settings of what Chronos is trained on."""

from dataclasses import dataclass

from moejax.checks import require_positive, require_probability
from train.series_sets.config import SetsConfig


@dataclass(frozen=True, kw_only=True)
class WindowConfig(SetsConfig):
    """Windows of real series, of mixtures of them and of drawn ones.

    `kernel_share`: chance of a window of KernelSynth, `seasonal_share` of drawn series that repeat
    themselves every `seasonal_period` steps; of `kernel_series` and `seasonal_series` series of
    `kernel_steps` steps. The other windows are TSMixup: convex combinations, by a Dirichlet of
    `mixup_alpha`, of up to `mixup` windows, each divided by its mean size.

    A window has `horizon` steps behind up to `context`, at least `min_past`; of the context values
    are lost by a chance that is itself uniform up to `drop`.
    """

    kernel_share: float = 0.1
    kernel_series: int = 256
    kernel_steps: int = 1024
    seasonal_share: float = 0.0
    seasonal_series: int = 1024
    seasonal_period: int = 24
    mixup: int = 3
    mixup_alpha: float = 1.5
    min_past: int = 60
    drop: float = 0.2
    rows: int = 65536
    horizon: int = 64
    score: tuple[str, ...] = ("etth1", "weather", "temperatures")
    samples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kernel_share", "seasonal_share", "drop"):
            require_probability(f"data.{name}", getattr(self, name))
        for name in ("mixup", "min_past", "kernel_steps", "seasonal_period"):
            require_positive(f"data.{name}", getattr(self, name))
        if self.kernel_share + self.seasonal_share > 1:
            raise ValueError(
                f"data.kernel_share is {self.kernel_share} and data.seasonal_share"
                f" {self.seasonal_share}; together they must be at most 1"
            )
        if self.min_past > self.context:
            raise ValueError(
                f"data.min_past is {self.min_past}; the context has only {self.context} steps"
            )
        if not self.mixup_alpha > 0:
            raise ValueError(f"data.mixup_alpha is {self.mixup_alpha}; it must be positive")
