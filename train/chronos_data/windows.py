"""Windows of series, planned on the host, cut and made tokens inside the compiled training step.

All series lie end to end in one array, each behind a gap of missing values as long as a context.
A plan says of each row which windows to mix, how much of the past to keep, and what to lose.
Letters: R planned rows, J windows that are mixed, L steps of a window (context and horizon).
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins
from moejax.models.chronos_losses import IGNORED
from train.chronos_data.config import WindowConfig
from train.chronos_data.kernel_synth import kernel_synth
from train.chronos_data.seasonal_synth import seasonal_synth
from train.data import PARTS, Part
from train.series_sets.sets import SeriesSet, load_sets

Arrays = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class WindowSet:
    """Series, and plans of rows by part: `indices` are their numbers in `plans`."""

    sets: list[SeriesSet]
    values: np.ndarray
    plans: dict[str, np.ndarray]
    indices: dict[str, np.ndarray]
    notes: tuple[str, ...]

    @property
    def source(self) -> str:
        """Names of the sets."""
        return ", ".join(one.name for one in self.sets)

    def describe(self) -> str:
        """What there is, in a line."""
        sizes = ", ".join(f"{s.name} {s.num_columns} x {s.num_rows}" for s in self.sets)
        counts = ", ".join(f"{len(rows)} {part}" for part, rows in self.indices.items())
        return f"data: {sizes}; windows: {counts}"

    def arrays(self) -> Arrays:
        """What `cut` reads."""
        return {"values": self.values, **self.plans}

    def fingerprint(self) -> str:
        """Identifies data and plans. Drawn series follow from the config, up to rounding."""
        found = hashlib.sha256()
        for one in self.sets:
            found.update(one.values.tobytes())
        for name in sorted(self.plans):
            found.update(self.plans[name].tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class _Place:
    """A series in the array of values: where its first step is, and the rows of each part."""

    first: int
    parts: dict[str, tuple[int, int]]


def load_windows(config: WindowConfig) -> WindowSet:
    """The sets of a config, and the rows planned from them. ValueError where nothing fits."""
    sets, notes = load_sets(config)
    notes += [note for one in sets for note in one.notes]
    series, groups = _places(config, sets)
    rng = np.random.default_rng(config.seed)
    counts = {"train": config.rows, "val": config.val_rows, "test": config.val_rows}
    plans = {part: _plan(config, groups, part, counts[part], rng) for part in PARTS}
    starts = np.cumsum([0, *(len(plans[part]["known"]) for part in PARTS)])
    return WindowSet(
        sets=sets,
        values=np.concatenate(series).astype(np.float32),
        plans={name: np.concatenate([plans[p][name] for p in PARTS]) for name in plans["train"]},
        indices={
            part: np.arange(starts[i], starts[i + 1], dtype=np.int32)
            for i, part in enumerate(PARTS)
        },
        notes=tuple(notes),
    )


def _places(
    config: WindowConfig, sets: list[SeriesSet]
) -> tuple[list[np.ndarray], list[tuple[float, list[_Place]]]]:
    """The arrays to lay end to end, and by source its chance and its series."""
    gap, series, end = np.full(config.context, np.nan), [], 0
    groups: list[tuple[float, list[_Place]]] = []
    by_name = dict(zip(config.sources, config.weights, strict=True)) if config.weights else {}
    columns = [
        (by_name.get(one.name, 1.0), one.values.T, {p: getattr(one.splits, p) for p in PARTS})
        for one in sets
    ]
    total = sum(weight for weight, _, _ in columns)
    drawn = [] if config.csv else _drawn(config)
    real = 1 - sum(share for share, _ in drawn)
    columns = [(real * weight / total, values, parts) for weight, values, parts in columns]
    steps = config.kernel_steps
    only_training = {"train": (0, steps), "val": (steps, steps), "test": (steps, steps)}
    columns += [(share, values, only_training) for share, values in drawn]
    for weight, values_CN, parts in columns:
        places = []
        for values in values_CN:
            series += [gap, values]
            places.append(_Place(end + len(gap), parts))
            end += len(gap) + len(values)
        groups.append((weight, places))
    return series, groups


def _drawn(config: WindowConfig) -> list[tuple[float, np.ndarray]]:
    """Chance and series of each generator that is used."""
    found = []
    if config.kernel_share:
        series = kernel_synth(config.kernel_series, config.kernel_steps, config.seed)
        found.append((config.kernel_share, series))
    if config.seasonal_share:
        sizes = config.seasonal_series, config.kernel_steps, config.seasonal_period
        found.append((config.seasonal_share, seasonal_synth(*sizes, config.seed)))
    return found


def _plan(
    config: WindowConfig,
    groups: list[tuple[float, list[_Place]]],
    part: Part,
    rows: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Plans of rows: start [R, J], weight [R, J], known [R], lost [R], seed [R]."""
    fitting = [
        (weight, [p for p in places if _fits(p.parts[part], part, config)])
        for weight, places in groups
    ]
    fitting = [(weight, places) for weight, places in fitting if places and weight > 0]
    if not fitting:
        raise ValueError(
            f"no series is long enough for a window of the {part} part: {config.min_past} steps of"
            f" the past and {config.horizon} ahead; lower data.horizon or data.min_past"
        )
    chances = np.array([weight for weight, _ in fitting])
    training = part == "train"
    most = config.mixup if training else 1
    start_RJ = np.zeros((rows, config.mixup), np.int32)
    weight_RJ = np.zeros((rows, config.mixup), np.float32)
    for row in range(rows):
        count = int(rng.integers(1, most + 1))
        for j in range(count):
            places = fitting[rng.choice(len(fitting), p=chances / chances.sum())][1]
            start_RJ[row, j] = _start(places[rng.integers(len(places))], part, config, rng)
        start_RJ[row, count:] = start_RJ[row, 0]
        weight_RJ[row, :count] = rng.dirichlet([config.mixup_alpha] * count)
    known = rng.integers(config.min_past, config.context + 1, rows)
    whole = rng.random(rows) < 0.5
    return {
        "start": start_RJ,
        "weight": weight_RJ,
        "known": np.where(whole | (not training), config.context, known).astype(np.int32),
        "lost": (config.drop * rng.random(rows) * training).astype(np.float32),
        "seed": rng.integers(2**31, size=rows, dtype=np.uint32),
    }


def _fits(rows: tuple[int, int], part: Part, config: WindowConfig) -> bool:
    past = config.min_past if part == "train" else 0
    return rows[1] - rows[0] >= past + config.horizon


def _start(place: _Place, part: Part, config: WindowConfig, rng: np.random.Generator) -> int:
    """Where a window begins, whose forecast lies in the part."""
    low, high = place.parts[part]
    first = low + (config.min_past if part == "train" else 0)
    return place.first + int(rng.integers(first, high - config.horizon + 1)) - config.context


def cut(
    arrays: Arrays, rows_B: jax.Array, config: WindowConfig, tokenizer: MeanScaleUniformBins
) -> dict[str, jax.Array]:
    """A batch: ids, mask [B, context + 1] and labels [B, horizon + 1], -100 where missing."""
    plan = {name: array[rows_B] for name, array in arrays.items() if name != "values"}
    context, length = config.context, config.context + config.horizon
    step_1L = jnp.arange(length)[None]
    window_BJL = arrays["values"][plan["start"][..., None] + step_1L[None]]
    size_BJ1 = jnp.nanmean(jnp.abs(window_BJL), axis=-1, keepdims=True)
    size_BJ1 = jnp.where(size_BJ1 > 0, size_BJ1, 1.0)
    used_BJ1 = plan["weight"][..., None]
    mixed_BL = jnp.sum(jnp.where(used_BJ1 > 0, used_BJ1 * window_BJL / size_BJ1, 0.0), axis=1)
    old_BL = step_1L < context - plan["known"][:, None]

    def lose(seed, lost):
        return jax.random.uniform(jax.random.key(seed), (length,)) < lost

    lost_BL = jax.vmap(lose)(plan["seed"], plan["lost"]) & (step_1L < context)
    mixed_BL = jnp.where(old_BL | lost_BL, jnp.nan, mixed_BL)
    return tokens_of(mixed_BL[:, :context], mixed_BL[:, context:], tokenizer)


def tokens_of(
    past_BC: jax.Array, future_BP: jax.Array, tokenizer: MeanScaleUniformBins
) -> dict[str, jax.Array]:
    """As the tokenizer makes them, up to the rounding of the scale."""
    config = tokenizer.config
    seen_BC = ~jnp.isnan(past_BC)
    total_B1 = jnp.sum(jnp.where(seen_BC, jnp.abs(past_BC), 0.0), axis=1, keepdims=True)
    scale_B1 = total_B1 / jnp.maximum(jnp.sum(seen_BC, axis=1, keepdims=True), 1)
    scale_B1 = jnp.where(scale_B1 > 0, scale_B1, 1.0)

    def ids(values):
        found = jnp.searchsorted(jnp.asarray(tokenizer.boundaries), values / scale_B1, side="right")
        return jnp.clip(found + config.n_special_tokens, 0, config.n_tokens - 1)

    end_B1 = jnp.full((len(past_BC), 1), config.eos_token_id)
    known_BP = ~jnp.isnan(future_BP)
    past = jnp.where(seen_BC, ids(past_BC), config.pad_token_id)
    future = jnp.where(known_BP, ids(future_BP), IGNORED)
    return {
        "ids": jnp.concatenate([past, end_B1], axis=1),
        "mask": jnp.concatenate([seen_BC, jnp.ones_like(end_B1, bool)], axis=1),
        "labels": jnp.concatenate([future, end_B1], axis=1),
    }
