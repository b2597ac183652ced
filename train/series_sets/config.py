"""Settings of sets of series: which, how many rows are drawn from them, what is scored."""

from dataclasses import dataclass
from typing import ClassVar

from moejax.checks import require_choice, require_positive

CSV = "csv"
SOURCES = ("etth1", "etth2", "ettm1_head", "weather", "temperatures")


@dataclass(frozen=True, kw_only=True)
class SetsConfig:
    """Which series, how rows are drawn from them, and what is scored at the end.

    `sources`: names of KNOWN; a set that is not on this machine is left out with a note.
    `weights`: chance of each source, in order (none: equal). `csv`: your own file instead of the
    sources, wide or (with `item_column`) long; its missing cells stay missing, `columns` chooses
    some. The split in time is the published one, for a CSV 70/10/20 % of each series.

    `rows` and `val_rows`: how many rows are drawn, from `seed`, for training and validation; a
    forecast is `horizon` steps behind `context` steps. `windows` held-out windows of each set of
    `score` (spread evenly over its test part), `samples` paths and at most `score_columns` columns
    (0: all) give the scores at the end.
    """

    KNOWN: ClassVar[tuple[str, ...]] = SOURCES

    sources: tuple[str, ...] = SOURCES
    weights: tuple[float, ...] = ()
    csv: str = ""
    date_column: str = ""
    item_column: str = ""
    separator: str = ","
    columns: tuple[str, ...] = ()
    rows: int = 16384
    val_rows: int = 256
    seed: int = 0
    context: int = 512
    horizon: int = 96
    score: tuple[str, ...] = ("etth1", "weather")
    windows: int = 10
    samples: int = 100
    score_columns: int = 0
    allow_download: bool = True

    def __post_init__(self) -> None:
        for name in self.sources:
            require_choice("data.sources", name, self.KNOWN)
        if not self.csv and not self.sources:
            raise ValueError("data.sources is empty and so is data.csv; name at least one source")
        for name in ("rows", "val_rows", "context", "horizon", "windows", "samples"):
            require_positive(f"data.{name}", getattr(self, name))
        count = self._num_weighted()
        if self.weights and len(self.weights) != count:
            raise ValueError(
                f"data.weights holds {len(self.weights)} numbers for {count} sources; give one each"
            )
        if self.weights and not (min(self.weights) >= 0 and 0 < sum(self.weights) < float("inf")):
            raise ValueError(f"data.weights is {self.weights}; they must be >= 0, and one above 0")

    def _num_weighted(self) -> int:
        """How many numbers `weights` has, if any."""
        return len(self.sources)
