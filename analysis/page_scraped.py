"""What the target's own metrics said, as it looks beside the client's figures. Computes none."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.page_numbers import NOTHING
from analysis.scraped import TITLES

Figures = dict[str, Any]


def part(series: Sequence[Figures]) -> RenderableType:
    """Least, mean and most of each series over the measured window."""
    columns = ("least", "mean", "most")
    table = _table(columns)
    for one in series:
        told = one["spans"]["measured"]
        table.add_row(*_name(one), *(_shown(one, told[column]) for column in columns))
    return Group(Text("The target's own metrics, over the measured window", style="bold"), table)


def by_level(series: Sequence[Figures], levels: Sequence[int]) -> RenderableType:
    """The mean of each series at each load level."""
    table = _table([f"{users:,}" for users in levels])
    for one in series:
        means = [_shown(one, one["spans"][users]["mean"]) if users in one["spans"] else NOTHING for users in levels]
        table.add_row(*_name(one), *means)
    return Group(Text("The target's own metrics, mean at each level", style="bold"), table)


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("")
    table.add_column("of", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _name(one: Figures) -> tuple[str, Text]:
    return TITLES[one["role"]][0], Text(one["name"])


def _shown(one: Figures, value: float) -> str:
    digits = 0 if value >= 100 else 1
    return f"{value:,.{digits}f}{TITLES[one['role']][2]}"
