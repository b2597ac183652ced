"""The HTML page of a report: one file, no scripts, pictures inside, nothing from the network."""

import html
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

MAX_CODE_LINES = 150
_COMMENT = re.compile(r"(#[^\n]*)")
_CALL = re.compile(r"\b(ttnn\.\w+)(?=\()")


def render(content: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page of a report's content; `pictures`: name -> PNG in base64."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("train"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= FILTERS
    template = environment.get_template("report.html")
    best = min(content["scores"]["baselines"].items(), key=lambda row: row[1]["mse"])
    return template.render(r=content, pictures=pictures, best_baseline=best)


def fixed(value: float | None, digits: int = 4) -> str:
    """A number with so many decimals."""
    return "-" if value is None else f"{value:,.{digits}f}"


def power(value: float | None) -> str:
    """A number in scientific notation."""
    return "-" if value is None else f"{value:.2e}" if value else "0"


def whole(value: float | None) -> str:
    """A count with separators."""
    return "-" if value is None else f"{value:,.0f}"


def short(value: float | None, unit: str = "") -> str:
    """A large number with a decimal prefix."""
    if value is None:
        return "-"
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:g} {unit}".strip()


def size(value: float | None) -> str:
    """Bytes in KiB or MiB."""
    if value is None:
        return "-"
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """A step of time in its natural unit."""
    for scale, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= scale and seconds % scale == 0:
            return f"{seconds / scale:g} {unit}"
    return f"{seconds:g} s"


def code(text: str) -> Markup:
    """Python with comments and ttnn calls marked; long code is cut, and says so."""
    lines = text.splitlines()
    shown = html.escape("\n".join(lines[:MAX_CODE_LINES]), quote=False)
    shown = _CALL.sub(r'<b class="call">\1</b>', shown)
    shown = _COMMENT.sub(r'<i class="comment">\1</i>', shown)
    if len(lines) > MAX_CODE_LINES:
        rest = len(lines) - MAX_CODE_LINES
        shown += f'\n<i class="comment"># ... {rest} more lines in model.py</i>'
    return Markup(shown)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


FILTERS = {
    "fixed": fixed,
    "power": power,
    "whole": whole,
    "short": short,
    "size": size,
    "duration": duration,
    "code": code,
    "flat": flat,
}
