"""Settings of a mixture of series and of the rows packed from it."""

from dataclasses import dataclass

from moejax.checks import require_choice, require_positive, require_probability

SYNTHETIC, CSV = "synthetic", "csv"
SOURCES = ("etth1", "etth2", "ettm1_head", "weather", "temperatures", SYNTHETIC)


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Which series, how rows of tokens are packed from them, and what is scored at the end.

    `sources`: names of SOURCES; a set that is not on this machine is left out with a note.
    `weights`: chance of each source, in order (none: equal). `csv`: your own file instead of the
    sources, wide or (with `item_column`) long; its missing cells stay missing, longer series are
    drawn more often, `columns` chooses some. The split in time is the published one, for a CSV
    70/10/20 % of each series.

    A row holds `row_tokens` tokens of samples of `min_tokens` to `max_tokens` tokens a variate; a
    sample has one variate, or by chance `multivariate` two to `max_variates` of the same set. The
    first part of its tokens, a share drawn from `scaler_share`, gives the scaler; the others are
    predicted. `rows` and `val_rows`: how many rows are drawn, from `seed`, for training and
    validation; validation predicts the forecast of `horizon` steps behind `context` steps.

    `synthetic_series` of `synthetic_steps` steps come from the generator. `windows` held-out
    windows of each set (spread evenly over its test part), `samples` paths and at most
    `score_columns` columns (0: all) give the scores at the end of training.
    """

    sources: tuple[str, ...] = SOURCES
    weights: tuple[float, ...] = ()
    csv: str = ""
    date_column: str = ""
    item_column: str = ""
    separator: str = ","
    columns: tuple[str, ...] = ()
    row_tokens: int = 80
    min_tokens: int = 8
    max_tokens: int = 40
    multivariate: float = 0.0
    max_variates: int = 4
    scaler_share: tuple[float, ...] = (0.25, 0.75)
    rows: int = 16384
    val_rows: int = 256
    seed: int = 0
    context: int = 512
    horizon: int = 96
    synthetic_series: int = 512
    synthetic_steps: int = 2048
    score: tuple[str, ...] = ("etth1", "weather")
    windows: int = 10
    samples: int = 100
    score_columns: int = 0
    allow_download: bool = True

    def __post_init__(self) -> None:
        for name in self.sources:
            require_choice("data.sources", name, SOURCES)
        if not self.csv and not self.sources:
            raise ValueError("data.sources is empty and so is data.csv; name at least one source")
        for name in (
            *("row_tokens", "min_tokens", "max_tokens", "max_variates", "rows", "val_rows"),
            *("context", "horizon", "synthetic_series", "synthetic_steps", "windows", "samples"),
        ):
            require_positive(f"data.{name}", getattr(self, name))
        require_probability("data.multivariate", self.multivariate)
        self._check_weights()
        if not 2 <= self.min_tokens <= self.max_tokens <= self.row_tokens:
            raise ValueError(
                f"data.min_tokens, max_tokens and row_tokens are {self.min_tokens},"
                f" {self.max_tokens} and {self.row_tokens}; they must rise, from at least 2"
            )
        low, high = (*self.scaler_share, 0, 0)[:2]
        if len(self.scaler_share) != 2 or not 0 < low <= high < 1:
            raise ValueError(
                f"data.scaler_share is {self.scaler_share}; give the least and the most, in (0, 1)"
            )

    def _check_weights(self) -> None:
        count = 1 if self.csv else len(self.sources)
        if self.weights and len(self.weights) != count:
            raise ValueError(
                f"data.weights holds {len(self.weights)} numbers for {count} sources; give one each"
            )
        if self.weights and not (min(self.weights) >= 0 and 0 < sum(self.weights) < float("inf")):
            raise ValueError(f"data.weights is {self.weights}; they must be >= 0, and one above 0")
