"""Published MoLE, DLinear, RLinear and RMLP parameters <-> our pytree.

Published names and layouts (torch: Linear weights are [out, in]):
- all experts share one projection whose row p * K + k is step p of expert k; our column is
  k * P + p;
- the router's output row is c * K + k for MoLE_DLinear and k * C + c for the others; our column is
  k * C + c;
- per-channel projections are `NAME.{c}.weight` in the base models, and stacked as
  `NAME.weight_per_channel` [C, rows, in] in mixtures (the official mixtures have none that works).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moejax.models.mole import Base, MoLEConfig

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One module: our path, its published name, and which layout its rows have."""

    path: str
    name: str
    layout: Literal["linear", "projection", "gate", "affine"]


_ROUTER = (
    Row("router/hidden", "Linear_Temporal.0", "linear"),
    Row("router/output", "Linear_Temporal.2", "gate"),
)
_REVIN = Row("revin", "rev", "affine")
_TEMPORAL = (
    Row("temporal/hidden", "temporal.0", "linear"),
    Row("temporal/output", "temporal.2", "linear"),
)
_EXPERTS = {
    "dlinear": (
        Row("experts/seasonal", "Linear_Seasonal", "projection"),
        Row("experts/trend", "Linear_Trend", "projection"),
    ),
    "rlinear": (Row("experts", "Linear", "projection"),),
    "rmlp": (*_TEMPORAL, Row("experts", "Linear", "projection")),
}
# The base RMLP calls its projection by another name than the mixture.
_BASE_RMLP = (*_TEMPORAL, Row("experts", "projection", "projection"))


def table(config: MoLEConfig) -> tuple[Row, ...]:
    """The modules of this model; ValueError for the router that was never published."""
    if config.router == "stats":
        raise ValueError(
            "router 'stats' has no published parameters; only 'time' and 'none' can be converted"
        )
    base_rmlp = config.base == "rmlp" and config.router == "none"
    rows = _BASE_RMLP if base_rmlp else _EXPERTS[config.base]
    rows += (_REVIN,) if config.normalises else ()
    return rows + (_ROUTER if config.router == "time" else ())


def published_config(
    tensors: Tensors, *, pred_len: int, num_channels: int, kernel_size: int = 25
) -> MoLEConfig:
    """The config that published parameters imply; ValueError when they fit no known model."""
    mixture = "Linear_Temporal.0.weight" in tensors
    base = _base_of(tensors)
    row = (_EXPERTS[base] if mixture or base != "rmlp" else _BASE_RMLP)[-1]
    projection = _find(dict(tensors), row, "weight")
    if projection is None:
        raise ValueError(f"missing {row.name}.weight; found {sorted(tensors)}")
    rows, seq_len = projection.shape[-2:]
    if rows % pred_len:
        raise ValueError(f"{row.name}.weight has {rows} rows; expected a multiple of {pred_len=}")
    options: dict[str, Any] = {}
    if mixture:
        options["num_time_features"] = tensors["Linear_Temporal.0.weight"].shape[-1]
    if base == "rmlp" and "temporal.0.weight" in tensors:
        options["d_model"] = tensors["temporal.0.weight"].shape[0]
    return MoLEConfig(
        base=base,
        seq_len=seq_len,
        pred_len=pred_len,
        num_channels=num_channels,
        num_experts=rows // pred_len,
        router="time" if mixture else "none",
        kernel_size=kernel_size,
        individual=projection.ndim == 3,
        revin="rev.affine_weight" in tensors or base == "dlinear",
        **options,
    )


def from_published(tensors: Tensors, config: MoLEConfig) -> dict[str, Any]:
    """Our parameter pytree from published tensors.

    ValueError names tensors that are missing, unknown or of the wrong shape.
    """
    left = dict(tensors)
    missing: list[str] = []
    flat: dict[str, np.ndarray] = {}
    for row in table(config):
        for kind in ("weight", "bias"):
            array = _take(left, row, kind, config)
            if array is None:
                missing.append(_name(row, kind))
            else:
                flat[_path(row, kind)] = _to_ours(array, row, config)
    if missing or left:
        raise ValueError(
            f"published parameters do not fit {config}: missing {sorted(missing) or 'nothing'},"
            f" unknown {sorted(left) or 'nothing'}"
        )
    return unflatten_dict({path: jnp.asarray(a) for path, a in flat.items()}, sep="/")


def to_published(params: Mapping[str, Any], config: MoLEConfig) -> dict[str, np.ndarray]:
    """Published tensors from our parameter pytree; the inverse of `from_published`.

    ValueError names parameters that are missing or unknown.
    """
    flat = {path: np.asarray(a) for path, a in flatten_dict(dict(params), sep="/").items()}
    rows = [(row, kind) for row in table(config) for kind in ("weight", "bias")]
    expected = {_path(row, kind) for row, kind in rows}
    if expected != set(flat):
        raise ValueError(
            f"parameters do not fit {config}: missing {sorted(expected - set(flat)) or 'nothing'},"
            f" unknown {sorted(set(flat) - expected) or 'nothing'}"
        )
    tensors: dict[str, np.ndarray] = {}
    for row, kind in rows:
        array = np.ascontiguousarray(_to_theirs(flat[_path(row, kind)], row, config))
        if row.layout != "projection" or not config.individual:
            tensors[_name(row, kind)] = array
        elif config.router == "none":
            tensors |= {f"{row.name}.{c}.{kind}": part for c, part in enumerate(array)}
        else:
            tensors[f"{row.name}.{kind}_per_channel"] = array
    return tensors


def _base_of(tensors: Tensors) -> Base:
    if any(name.startswith("Linear_Seasonal.") for name in tensors):
        return "dlinear"
    if any(name.startswith("temporal.") for name in tensors):
        return "rmlp"
    if any(name.startswith("Linear.") for name in tensors):
        return "rlinear"
    raise ValueError(
        "tensors of no known model (DLinear, RLinear, RMLP, their mixtures); found"
        f" {sorted(tensors) or 'nothing'}"
    )


def _name(row: Row, kind: str) -> str:
    return f"{row.name}.affine_{kind}" if row.layout == "affine" else f"{row.name}.{kind}"


def _path(row: Row, kind: str) -> str:
    ours = "scale" if row.layout == "affine" else "kernel"
    return f"{row.path}/{ours if kind == 'weight' else 'bias'}"


def _find(left: dict[str, np.ndarray], row: Row, kind: str) -> np.ndarray | None:
    """Take a tensor out of `left`: under its plain name, stacked, or in pieces by channel."""
    for name in (_name(row, kind), f"{row.name}.{kind}_per_channel"):
        if name in left:
            return left.pop(name)
    pieces = []
    while f"{row.name}.{len(pieces)}.{kind}" in left:
        pieces.append(left.pop(f"{row.name}.{len(pieces)}.{kind}"))
    return np.stack(pieces) if pieces else None


def _take(
    left: dict[str, np.ndarray], row: Row, kind: str, config: MoLEConfig
) -> np.ndarray | None:
    array = _find(left, row, kind)
    if array is not None and array.shape != (shape := _shape(row, kind, config)):
        raise ValueError(f"{_name(row, kind)} has shape {array.shape}; {config} needs {shape}")
    return array


def _shape(row: Row, kind: str, config: MoLEConfig) -> tuple[int, ...]:
    gate = config.num_experts * config.num_channels
    if row.layout == "affine":
        return (config.num_channels,)
    rows, inputs = {
        "router/hidden": (gate, config.num_time_features),
        "router/output": (gate, gate),
        "temporal/hidden": (config.d_model, config.seq_len),
        "temporal/output": (config.seq_len, config.d_model),
    }.get(row.path, (config.num_experts * config.pred_len, config.seq_len))
    shape = (rows, inputs) if kind == "weight" else (rows,)
    per_channel = row.layout == "projection" and config.individual
    return (config.num_channels, *shape) if per_channel else shape


def _to_ours(array: np.ndarray, row: Row, config: MoLEConfig) -> np.ndarray:
    if row.layout == "affine":
        return array
    axis = 1 if row.layout == "projection" and config.individual else 0
    array = _regroup(array, axis, _groups(row, config))
    return np.swapaxes(array, -1, -2) if array.ndim > 1 else array


def _to_theirs(array: np.ndarray, row: Row, config: MoLEConfig) -> np.ndarray:
    if row.layout == "affine":
        return array
    axis = 1 if row.layout == "projection" and config.individual else 0
    array = np.swapaxes(array, -1, -2) if array.ndim > 1 else array
    groups = _groups(row, config)
    return _regroup(array, axis, None if groups is None else (groups[1], groups[0]))


def _groups(row: Row, config: MoLEConfig) -> tuple[int, int] | None:
    """(slow, fast) sizes of the published row order, where it differs from ours."""
    if row.layout == "projection":
        return config.pred_len, config.num_experts
    if row.layout == "gate" and config.base == "dlinear":
        return config.num_channels, config.num_experts
    return None


def _regroup(array: np.ndarray, axis: int, groups: tuple[int, int] | None) -> np.ndarray:
    """Reorder an axis from slow * FAST + fast to fast * SLOW + slow."""
    if groups is None:
        return array
    lead, rest = array.shape[:axis], array.shape[axis + 1 :]
    return array.reshape(*lead, *groups, *rest).swapaxes(axis, axis + 1).reshape(array.shape)
