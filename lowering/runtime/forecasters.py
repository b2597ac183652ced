"""Whatever forecasts, by its folder: see the module of its kind."""

from pathlib import Path
from typing import Any

from lowering.runtime import bolt, chronos, forecast
from lowering.runtime.head import FORECASTER, read_head

KINDS = {
    forecast.KIND: (forecast.read_card, forecast.open_moirai),
    chronos.KIND: (chronos.read_card, chronos.open_chronos),
    bolt.KIND: (bolt.read_card, bolt.open_bolt),
}
Card = forecast.Card | chronos.ChronosCard | bolt.BoltCard


def read_card(directory: str | Path) -> Card:
    """What a folder says of its programs; ValueError for a folder that says nothing usable."""
    place, head = Path(directory) / FORECASTER, read_head(directory)
    if head.get("kind") not in KINDS:
        raise ValueError(f"{place}: kind is {head.get('kind')!r}; it must be {' or '.join(KINDS)}")
    try:
        return KINDS[head["kind"]][0](head)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} does not describe a forecaster: {error!r}") from error


def open_forecaster(directory: str | Path, device: Any) -> Any:
    """The folder's programs on a device, with `forecast(series, ...)`."""
    read_card(directory)
    return KINDS[read_head(directory)["kind"]][1](directory, device)
