"""Samples of many series packed into rows of tokens, and cut from the device's arrays inside jit.

A row is a plan: of every token where its cells begin in one long array of values, and its ids. All
plans are drawn once from a seed, so that a row is only its number. Letters: W rows, B rows of a
batch, T tokens of a row, P cells of the largest patch.
"""

import hashlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from moejax.forecasting.missing import causal_mean
from moejax.models.moirai_moe import Tokens
from train.data import PARTS, Part
from train.moirai_data.config import SYNTHETIC, MixtureConfig
from train.moirai_data.synthetic import synthetic
from train.series_sets.sets import SeriesSet, drawn_set, load_sets

FIELDS = ("start", "sample_id", "time_id", "variate_id", "prediction_mask", "patch_size")
# the parts' plans differ also where the seed is the same
STREAM = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True, kw_only=True)
class Store:
    """Every variate end to end: values float32, 0 or a causal mean where not observed.

    In front of each variate stand P cells that are not observed. `first[s]`: where the first step
    of the first variate of set s lies; `stride[s]`: from there to the next variate.
    """

    values: np.ndarray
    observed: np.ndarray
    first: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PackedSeries:
    """A mixture ready for training: sets, their values, and the plans of all rows (W, T)."""

    sets: tuple[SeriesSet, ...]
    store: Store
    plans: dict[str, np.ndarray]
    indices: dict[Part, np.ndarray]
    notes: tuple[str, ...]
    patch_length: int

    @property
    def source(self) -> str:
        """Where the series come from."""
        return ", ".join(dict.fromkeys(one.source for one in self.sets))

    def describe(self) -> str:
        """Which sets there are and how many rows, in a line."""
        sizes = ", ".join(f"{one.name} {one.num_columns} x {one.num_rows}" for one in self.sets[:8])
        sizes += f" and {len(self.sets) - 8} more" if len(self.sets) > 8 else ""
        rows = ", ".join(f"{len(self.indices[part])} {part}" for part in PARTS)
        return f"data: {sizes}; rows of {self.plans['start'].shape[1]} tokens: {rows}"

    def arrays(self) -> dict[str, np.ndarray]:
        """What `cut` reads."""
        return {"values": self.store.values, "observed": self.store.observed, **self.plans}

    def fingerprint(self) -> str:
        """sha256 of values and plans."""
        digest = hashlib.sha256()
        for array in self.arrays().values():
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def pack_series(config: MixtureConfig, patch_sizes: tuple[int, ...]) -> PackedSeries:
    """Load the sets of a mixture and plan its rows; ValueError for every problem with the data."""
    sets, notes = load_sets(
        config,
        multivariate=config.multivariate > 0,
        generators={SYNTHETIC: lambda: _synthetic(config)},
    )
    sets, short = _long_enough(sets, min(patch_sizes))
    width = max(patch_sizes)
    store = make_store(sets, width)
    by_part = {part: _plan_part(config, sets, store, patch_sizes, part) for part in PARTS}
    plans = {name: np.concatenate([by_part[part][name] for part in PARTS]) for name in FIELDS}
    counts = np.cumsum([0, *(len(by_part[part]["start"]) for part in PARTS)])
    return PackedSeries(
        sets=tuple(sets),
        store=store,
        plans=plans,
        indices={
            part: np.arange(low, high, dtype=np.int32)
            for part, low, high in zip(PARTS, counts[:-1], counts[1:], strict=True)
        },
        notes=(*notes, *short, *(note for one in sets for note in one.notes)),
        patch_length=width,
    )


def make_store(sets: list[SeriesSet], width: int) -> Store:
    """The values of all sets in one array."""
    values, first, stride, total = [], [], [], 0
    for one in sets:
        first.append(total + width)
        stride.append(one.num_rows + width)
        total += one.num_columns * stride[-1]
        values.append(np.pad(one.values.T, ((0, 0), (width, 0)), constant_values=np.nan).ravel())
    if total + width >= 2**31:
        raise ValueError(f"the sets hold {total} values; fewer than 2**31 fit one run")
    pieces, pad = [], np.zeros(width)
    for one in sets:
        for column in one.values.T:
            pieces += [pad, causal_mean(column)]
    flat = np.concatenate([*values, np.full(width, np.nan)])
    return Store(
        values=np.concatenate([*pieces, pad]).astype(np.float32),
        observed=~np.isnan(flat),
        first=tuple(first),
        stride=tuple(stride),
    )


def cut(arrays: dict[str, jax.Array], rows_B: jax.Array, width: int) -> Tokens:
    """The tokens of these rows, inside jit; cells that are not of a token hold 0."""
    plan = {name: jnp.take(arrays[name], rows_B, axis=0).astype(jnp.int32) for name in FIELDS}
    cell_P = jnp.arange(width)
    inside_BTP = cell_P[None, None] < plan["patch_size"][..., None]
    inside_BTP &= (plan["sample_id"] > 0)[..., None]
    at_BTP = plan["start"][..., None] + cell_P[None, None]
    return Tokens(
        target=jnp.where(inside_BTP, jnp.take(arrays["values"], at_BTP), 0.0),
        observed_mask=inside_BTP & jnp.take(arrays["observed"], at_BTP),
        sample_id=plan["sample_id"],
        time_id=plan["time_id"],
        variate_id=plan["variate_id"],
        prediction_mask=plan["prediction_mask"] > 0,
        patch_size=plan["patch_size"],
    )


@dataclass(frozen=True, kw_only=True)
class _Span:
    """`count` tokens of one variate, side by side in a row from `place` on.

    `start`: where the first token's cells begin; tokens from `known` on are predicted.
    """

    row: int
    place: int
    sample: int
    variate: int
    start: int
    count: int
    patch: int
    known: int


def _expand(spans: list[_Span], rows: int, width: int, padding: int) -> dict[str, np.ndarray]:
    """The plans {name: [W, T]} of a part; `padding`: patch size where there is no token."""
    table = {name: np.array([vars(one)[name] for one in spans], np.int64) for name in _NAMES}
    counts = table["count"]
    owner = np.repeat(np.arange(len(spans)), counts)
    index = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = {name: column[owner] for name, column in table.items()}
    found = {
        "start": at["start"] + index * at["patch"],
        "sample_id": at["sample"],
        "time_id": index,
        "variate_id": at["variate"],
        "prediction_mask": index >= at["known"],
        "patch_size": at["patch"],
    }
    plans = {}
    for name in FIELDS:
        dtype = {"start": np.int32, "prediction_mask": bool}.get(name, np.int16)
        plan = np.full((rows, width), padding if name == "patch_size" else 0, dtype)
        plan[at["row"], at["place"] + index] = found[name]
        plans[name] = plan
    return plans


_NAMES = tuple(_Span.__dataclass_fields__)


def _plan_part(
    config: MixtureConfig,
    sets: list[SeriesSet],
    store: Store,
    sizes: tuple[int, ...],
    part: Part,
) -> dict[str, np.ndarray]:
    """The plans of a part's rows."""
    rng = np.random.default_rng([config.seed, STREAM[part]])
    if part == "train":
        spans, rows = _training_spans(config, sets, store, sizes, rng), config.rows
    else:
        spans, rows = _held_out_spans(config, sets, store, sizes[0], part, rng), config.val_rows
    return _expand(spans, rows, config.row_tokens, max(sizes))


def _training_spans(
    config: MixtureConfig,
    sets: list[SeriesSet],
    store: Store,
    sizes: tuple[int, ...],
    rng: np.random.Generator,
) -> list[_Span]:
    """Samples, drawn until no more fits a row."""
    heaps = np.cumsum(_chances(config, sets))
    spans: list[_Span] = []
    for row in range(config.rows):
        place = sample = 0
        while config.row_tokens - place >= config.min_tokens:
            which = int(np.searchsorted(heaps, rng.random() * heaps[-1], side="right"))
            sample += 1
            drawn = _draw(config, sets[which], sizes, config.row_tokens - place, rng)
            for variate, column in enumerate(drawn.columns):
                begin = store.first[which] + int(column) * store.stride[which] + drawn.first
                span = _Span(
                    row=row,
                    place=place,
                    sample=sample,
                    variate=variate,
                    start=begin,
                    count=drawn.count,
                    patch=drawn.patch,
                    known=drawn.known,
                )
                spans.append(span)
                place += drawn.count
    return spans


def _synthetic(config: MixtureConfig) -> SeriesSet:
    values = synthetic(config.synthetic_series, config.synthetic_steps, config.seed)
    return drawn_set(SYNTHETIC, values, season=24)


def _chances(config: MixtureConfig, sets: list[SeriesSet]) -> np.ndarray:
    """The weight of each set that was found; series of a CSV count by their length."""
    if config.csv:
        return np.array([one.values.size for one in sets], np.float64)
    weights = dict(zip(config.sources, config.weights or [1.0] * len(config.sources), strict=True))
    chances = np.array([weights[one.name] for one in sets])
    if not chances.sum() > 0:
        raise ValueError("data.weights leaves no source with a chance")
    return chances


def _long_enough(sets: list[SeriesSet], patch: int) -> tuple[list[SeriesSet], list[str]]:
    """The sets whose training part holds two patches, and notes on the others."""
    kept, notes = [], []
    for one in sets:
        low, high = one.splits.train
        if high - low >= 2 * patch:
            kept.append(one)
        else:
            notes.append(
                f"{one.name} ({', '.join(one.columns[:3])}) is left out: it has {high - low}"
                f" training rows; two patches need {2 * patch}"
            )
    if not kept:
        raise ValueError(f"no series is long enough: {notes[0]}")
    return kept, notes


@dataclass(frozen=True)
class _Drawn:
    """A sample: columns of a set, from step `first` on (it may lie before the series)."""

    columns: np.ndarray
    first: int
    count: int
    patch: int
    known: int


def _draw(
    config: MixtureConfig,
    one: SeriesSet,
    sizes: tuple[int, ...],
    space: int,
    rng: np.random.Generator,
) -> _Drawn:
    """One sample of a set's training part that takes at most `space` tokens."""
    patch = sizes[int(rng.integers(len(sizes)))]
    low, high = one.splits.train
    variates = 1
    if config.multivariate and rng.random() < config.multivariate:
        limit = min(config.max_variates, one.num_columns, space // config.min_tokens)
        variates = int(rng.integers(2, limit + 1)) if limit >= 2 else 1
    most = min(config.max_tokens, space // variates, -(-(high - low) // patch))
    # half of the samples are as long as they may be, as contexts of forecasts are
    least = min(config.min_tokens, most)
    count = most if rng.random() < 0.5 else int(rng.integers(least, most + 1))
    if space - count * variates < config.min_tokens:
        count = most
    last = high - count * patch
    first = int(rng.integers(min(low - patch + 1, last), last + 1))
    low_share, high_share = config.scaler_share
    known = min(max(round(rng.uniform(low_share, high_share) * count), 1), max(count - 1, 1))
    if variates == 1:
        columns = rng.integers(one.num_columns, size=1)
    else:
        columns = rng.permutation(one.num_columns)[:variates]
    return _Drawn(columns, first, count, patch, known)


def _held_out_spans(
    config: MixtureConfig,
    sets: list[SeriesSet],
    store: Store,
    patch: int,
    part: Part,
    rng: np.random.Generator,
) -> list[_Span]:
    """Forecasts: `horizon` steps inside the part, behind up to `context` steps."""
    ahead = -(-config.horizon // patch)
    parts = [getattr(one.splits, part) for one in sets]
    fitting = [i for i, (low, high) in enumerate(parts) if high - low >= ahead * patch]
    if not fitting:
        raise ValueError(
            f"no set has a {part} part of {ahead * patch} rows, which data.horizon"
            f" {config.horizon} needs in patches of {patch}; lower it, or give a longer series"
        )
    behind = min(-(-config.context // patch), config.row_tokens - ahead)
    if behind < 1:
        raise ValueError(
            f"data.row_tokens is {config.row_tokens}; data.horizon {config.horizon} alone takes"
            f" {ahead} tokens of {patch} steps: raise row_tokens, or lower the horizon"
        )
    spans = []
    for row in range(config.val_rows):
        for sample in range(config.row_tokens // (behind + ahead)):
            which = fitting[int(rng.integers(len(fitting)))]
            low, high = parts[which]
            begin = int(rng.integers(low, high - ahead * patch + 1))
            known = min(behind, -(-begin // patch))
            column = int(rng.integers(sets[which].num_columns))
            base = store.first[which] + column * store.stride[which]
            span = _Span(
                row=row,
                place=sample * (behind + ahead),
                sample=sample + 1,
                variate=0,
                start=base + begin - known * patch,
                count=known + ahead,
                patch=patch,
                known=known,
            )
            spans.append(span)
    return spans
