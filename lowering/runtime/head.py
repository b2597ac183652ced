"""The file by which a folder says that it forecasts, and how. Standard library only."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORECASTER = "forecaster.json"
FORECASTER_SCHEMA = 2


def make_head(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values of a forecaster of a kind: "moirai_moe", "chronos" or "chronos_bolt"."""
    return {"schema": FORECASTER_SCHEMA, "kind": kind, **fields}


def read_head(directory: str | Path) -> dict[str, Any]:
    """What a folder says of its programs; ValueError for a folder that says nothing usable."""
    place = Path(directory) / FORECASTER
    try:
        data = json.loads(place.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != FORECASTER_SCHEMA:
        raise ValueError(f"{place}: this version reads schema {FORECASTER_SCHEMA}")
    return data
