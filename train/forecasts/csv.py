"""Series of a user's CSV, long or wide, plain or gzip."""

from pathlib import Path

from train.forecasts.columns import ITEM_NAMES, ColumnOptions
from train.forecasts.items import SeriesTable, read_items
from train.tables import OptionNames, read_frame

OPTIONS = OptionNames(file="--csv", separator="--separator ';'", date_column="timestamp_column")


def read_csv(
    path: Path | str,
    options: ColumnOptions,
    prediction_length: int,
    *,
    separator: str = ",",
    decimal: str = ".",
) -> SeriesTable:
    """All series of the file; ValueError for what is wrong with it as a whole.

    Names of items stay as they are written: 007, NA.
    """
    path = Path(path)
    texts = (options.item,) if options.item else ITEM_NAMES
    if decimal not in (".", ",") or decimal == separator or not separator:
        raise ValueError(
            f"separator {separator!r} and decimal {decimal!r}: the separator is one character or "
            "more, the decimal . or , and another"
        )
    frame = read_frame(
        path, separator, min_rows=1, text_columns=texts, decimal=decimal, options=OPTIONS
    )
    return read_items(frame, options, prediction_length, str(path), path.name.split(".")[0])
