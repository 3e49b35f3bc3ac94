"""How figures look: digits, quantiles, intervals, percentages. Knows no page."""

import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Figures = dict[str, Any]

NOTHING = "-"
EN_DASH = "\N{EN DASH}"


def quantile(found: Figures, metric: str) -> Text:
    """A quantile, or that there is too little to tell it."""
    if found["too_few"]:
        return Text(f"n<{found['turns_needed']}", style="dim")
    return Text(number(found["value"], metric))


def milliseconds(found: Figures) -> str:
    """A quantile with its unit, in a sentence."""
    return f"n<{found['turns_needed']}" if found["too_few"] else f"{number(found['value'], 'ms')} ms"


def interval(found: Figures, metric: str) -> Text:
    """The interval of a quantile; nothing where there is none."""
    if found["low"] is None:
        return Text("")
    low, high = number(found["low"], metric), number(found["high"], metric)
    return Text(f"{low}{EN_DASH}{high}{'+' if found['open_high'] else ''}", style="dim")


def fits(table: Table, console: Console) -> bool:
    """Whether a table is no wider than the page."""
    return console.measure(table, options=console.options.update_width(1000)).maximum <= console.width


def number(value: float | None, metric: str) -> str:
    """A figure with the digits it deserves: three or so that mean something."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if metric == "rtf":
        return f"{value:z,.3f}" if abs(value) < 10 else f"{value:z,.1f}"
    return f"{value:z,.1f}" if abs(value) < 100 else f"{value:z,.0f}"


def rate(value: float | None) -> str:
    """A rate with the digits it deserves."""
    if value is None:
        return NOTHING
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def percent(share: float | None) -> str:
    """A percentage that says 100 % of all only, and 0 % of none."""
    if share is None:
        return NOTHING
    if share in (0, 100):
        return f"{share:.0f} %"
    return f"{min(max(share, 0.1), 99.9):.1f} %"
