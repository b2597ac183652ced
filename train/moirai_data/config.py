"""Settings of the rows that are packed from sets of series."""

from dataclasses import dataclass
from typing import ClassVar

from moejax.checks import require_positive, require_probability
from train.series_sets.config import SOURCES, SetsConfig

SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True)
class MixtureConfig(SetsConfig):
    """Rows of tokens packed from a mixture of sets, of which longer series are drawn more often.

    A row holds `row_tokens` tokens of samples of `min_tokens` to `max_tokens` tokens a variate; a
    sample has one variate, or by chance `multivariate` two to `max_variates` of the same set. The
    first part of its tokens, a share drawn from `scaler_share`, gives the scaler; the others are
    predicted. `synthetic_series` of `synthetic_steps` steps come from the generator.
    """

    KNOWN: ClassVar[tuple[str, ...]] = (*SOURCES, SYNTHETIC)

    sources: tuple[str, ...] = KNOWN
    row_tokens: int = 80
    min_tokens: int = 8
    max_tokens: int = 40
    multivariate: float = 0.0
    max_variates: int = 4
    scaler_share: tuple[float, ...] = (0.25, 0.75)
    synthetic_series: int = 512
    synthetic_steps: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            *("row_tokens", "min_tokens", "max_tokens", "max_variates"),
            *("synthetic_series", "synthetic_steps"),
        ):
            require_positive(f"data.{name}", getattr(self, name))
        require_probability("data.multivariate", self.multivariate)
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

    def _num_weighted(self) -> int:
        return 1 if self.csv else super()._num_weighted()
