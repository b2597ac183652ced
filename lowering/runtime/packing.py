"""Series as the tokens of a MOIRAI-MoE program of fixed sizes. Numpy only.

Letters: C targets, F covariates known ahead, G covariates of the past, L steps of history, H steps
of forecast; N patches of the context and M of the forecast for each variate, P cells of a token.

A row's tokens: the past of targets, of covariates known ahead, the future of these, the past of the
other covariates; at the end M - 1 patches of the forecast, each with all its targets, which are
written one by one. The last patch is drawn but never read.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ForecastSizes:
    """`batch` rows side by side; `context` and `horizon` in steps, `patch` steps of a token,
    `width` cells that a token has room for. ValueError for sizes that are no sizes.
    """

    batch: int
    context: int
    horizon: int
    patch: int
    width: int
    targets: int = 1
    known_ahead: int = 0
    past_only: int = 0

    def __post_init__(self):
        for name in ("batch", "context", "horizon", "patch", "targets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.known_ahead < 0 or self.past_only < 0 or self.width < self.patch:
            raise ValueError(
                f"known_ahead is {self.known_ahead}, past_only {self.past_only}, width"
                f" {self.width}; the first two must be >= 0, width >= patch ({self.patch})"
            )

    @property
    def past(self) -> int:
        """N."""
        return -(-self.context // self.patch)

    @property
    def future(self) -> int:
        """M."""
        return -(-self.horizon // self.patch)

    @property
    def known(self) -> int:
        """Tokens in front of the forecast's."""
        variates = self.targets + self.known_ahead + self.past_only
        return variates * self.past + self.known_ahead * self.future

    @property
    def tokens(self) -> int:
        """Tokens of a row."""
        return self.known + (self.future - 1) * self.targets

    def read_at(self, step: int) -> np.ndarray:
        """The token of each target that describes patch `step` of the forecast, int32 [C]."""
        targets = np.arange(self.targets, dtype=np.int32)
        if step == 0:
            return (targets + 1) * self.past - 1
        return self.known + (step - 1) * self.targets + targets


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series up to now; NaN is a missing value.

    target [C, L]; known_ahead [F, L + H]; past_only [G, L].
    """

    target: np.ndarray
    known_ahead: np.ndarray | None = None
    past_only: np.ndarray | None = None

    def check(self, sizes: ForecastSizes) -> None:
        """ValueError for what the program cannot take."""
        length = self.target.shape[-1] if self.target.ndim else 0
        wanted = {
            "target": (self.target, sizes.targets, length),
            "known_ahead": (self.known_ahead, sizes.known_ahead, length + sizes.horizon),
            "past_only": (self.past_only, sizes.past_only, length),
        }
        for name, (values, rows, steps) in wanted.items():
            found = (0, steps) if values is None else values.shape
            if found != (rows, steps) or steps < 1:
                raise ValueError(
                    f"{name} has shape {found}; this program takes [{rows}, {max(steps, 1)}]"
                )
            if values is not None and (np.abs(values) > np.finfo(np.float32).max).any():
                raise ValueError(f"{name} has values that are infinite or too large for float32")
        if np.isnan(self.target).all():
            raise ValueError("the target has no value")


@dataclass(frozen=True)
class Row:
    """The tokens of a series: target, counted [T, P], sample, time, variate [T].

    `counted`: cells that the scaler may see; none in the forecast before it is written.
    """

    target: np.ndarray
    counted: np.ndarray
    sample: np.ndarray
    time: np.ndarray
    variate: np.ndarray


def pack(series: Series, sizes: ForecastSizes) -> Row:
    """The last steps of a series as a row of tokens; what is missing is filled in, not counted.

    As in the published code, a first patch without a step of the series is padding (sample 0) for
    the targets; for covariates it is none where it reaches in front of the context.
    """
    length = series.target.shape[1]
    before = max(sizes.context - length, 0)  # steps of the context before the series began
    fill = _causal_mean if sizes.targets == 1 else _zeros
    seen = _past(~np.isnan(series.target), sizes)
    begun = np.maximum.accumulate(seen.any(axis=(0, 2)))
    time = np.maximum(np.cumsum(begun) - 1, 0)
    after = time[-1] + 1 + np.arange(sizes.future)
    target = _past(np.apply_along_axis(fill, 1, series.target), sizes)
    parts = [_tokens(target, seen, time, _inside(before, sizes, front=False), 0, sizes)]
    inside = _inside(before, sizes, front=True)
    number = sizes.targets
    if series.known_ahead is not None and sizes.known_ahead:
        values, there = _zeros(series.known_ahead), ~np.isnan(series.known_ahead)
        past = [_past(x[:, :length], sizes) for x in (values, there)]
        later = [_patches(x[:, length:], sizes, behind=True) for x in (values, there)]
        always = np.ones(sizes.future, bool)
        parts.append(_tokens(past[0], past[1], time, inside, number, sizes))
        parts.append(_tokens(later[0], later[1], after, always, number, sizes))
        number += sizes.known_ahead
    if series.past_only is not None and sizes.past_only:
        values = _past(_zeros(series.past_only), sizes)
        there = _past(~np.isnan(series.past_only), sizes)
        parts.append(_tokens(values, there, time, inside, number, sizes))
    nothing = np.zeros((sizes.targets, 1, sizes.patch))
    for moment in after[:-1]:
        parts.append(_tokens(nothing, nothing > 0, np.array([moment]), np.array([True]), 0, sizes))
    return Row(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _past(x: np.ndarray, sizes: ForecastSizes) -> np.ndarray:
    """The context's steps as patches [V, N, patch], zeros in front of a short series."""
    x = x[:, -sizes.context :]
    return _patches(np.pad(x, ((0, 0), (sizes.context - x.shape[1], 0))), sizes, behind=False)


def _patches(x: np.ndarray, sizes: ForecastSizes, *, behind: bool) -> np.ndarray:
    """[V, steps] -> [V, patches, patch], filled up with zeros on one side."""
    spare = -x.shape[1] % sizes.patch
    x = np.pad(x, ((0, 0), (0, spare) if behind else (spare, 0)))
    return x.reshape(len(x), -1, sizes.patch)


def _inside(before: int, sizes: ForecastSizes, *, front: bool) -> np.ndarray:
    """Whether a patch [N] holds a step of the series; `front`: what counts before the context."""
    steps = np.arange(sizes.context) >= before
    steps = np.pad(steps, (-sizes.context % sizes.patch, 0), constant_values=front)
    return steps.reshape(-1, sizes.patch).any(axis=1)


def _tokens(values, observed, time, inside, first: int, sizes: ForecastSizes):
    """The fields of a Row for some variates over the same patches [V, n, patch]."""
    variates, count, _ = values.shape
    room = ((0, 0), (0, sizes.width - sizes.patch))
    return (
        np.pad(values.reshape(-1, sizes.patch), room).astype(np.float32),
        np.pad(observed.reshape(-1, sizes.patch), room),
        np.tile(inside, variates).astype(np.int32),
        np.tile(time, variates).astype(np.int32),
        np.repeat(first + np.arange(variates), count).astype(np.int32),
    )


def _zeros(values: np.ndarray) -> np.ndarray:
    """0 for what is missing."""
    return np.where(np.isnan(values), 0.0, values)


def _causal_mean(values: np.ndarray) -> np.ndarray:
    """Missing values [L] become the mean of all before, in which a gap counts as the last value;
    at the start the first value that is there.
    """
    missing = np.isnan(values)
    if missing.all():
        return np.zeros_like(values)
    last = np.maximum.accumulate(np.where(missing, 0, np.arange(len(values))))
    filled = values[np.where(missing[last], np.argmin(missing), last)]
    sums = np.cumsum(filled, dtype=np.float64)
    means = np.concatenate([filled[:1], sums[:-1] / np.arange(1, len(values))])
    return np.where(missing, means, values)
