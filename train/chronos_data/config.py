"""Settings of what Chronos is trained on."""

from dataclasses import dataclass

from moejax.checks import require_choice, require_positive, require_probability

SOURCES = ("etth1", "etth2", "ettm1_head", "weather", "temperatures")


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which series, how windows are drawn from them, and what is scored at the end.

    `sources`: names of SOURCES; a set that is not on this machine is left out with a note.
    `weights`: chance of each source, in order (none: equal). `csv`: your own file instead, wide or
    (with `item_column`) long. The split in time is the published one, for a CSV 70/10/20 % of each
    series. `kernel_share`: chance of a window of KernelSynth, `seasonal_share` of drawn series that
    repeat themselves every `seasonal_period` steps; of `kernel_series` and `seasonal_series` series
    of `kernel_steps` steps. The other windows are TSMixup: convex combinations, by a Dirichlet of
    `mixup_alpha`, of up to `mixup` windows, each divided by its mean size.

    A window has `horizon` steps behind up to `context`, at least `min_past`; of the context values
    are lost by a chance that is itself uniform up to `drop`. `rows`, `val_rows`: windows that are
    drawn, from `seed`. `windows` held-out windows of each set of `score`, `samples` paths and at
    most `score_columns` columns (0: all) give the scores at the end.
    """

    sources: tuple[str, ...] = SOURCES
    weights: tuple[float, ...] = ()
    csv: str = ""
    date_column: str = ""
    item_column: str = ""
    separator: str = ","
    columns: tuple[str, ...] = ()
    kernel_share: float = 0.1
    kernel_series: int = 256
    kernel_steps: int = 1024
    seasonal_share: float = 0.0
    seasonal_series: int = 1024
    seasonal_period: int = 24
    mixup: int = 3
    mixup_alpha: float = 1.5
    context: int = 512
    horizon: int = 64
    min_past: int = 60
    drop: float = 0.2
    rows: int = 65536
    val_rows: int = 256
    seed: int = 0
    score: tuple[str, ...] = ("etth1", "weather", "temperatures")
    windows: int = 10
    samples: int = 20
    score_columns: int = 0
    allow_download: bool = True

    def __post_init__(self) -> None:
        for name in self.sources:
            require_choice("data.sources", name, SOURCES)
        for name in ("kernel_share", "seasonal_share", "drop"):
            require_probability(f"data.{name}", getattr(self, name))
        sizes = ("mixup", "context", "horizon", "min_past", "rows", "val_rows", "kernel_steps")
        for name in (*sizes, "seasonal_period"):
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
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(
                f"data.weights has {len(self.weights)} numbers for {len(self.sources)} sources"
            )
        if not self.mixup_alpha > 0:
            raise ValueError(f"data.mixup_alpha is {self.mixup_alpha}; it must be positive")
