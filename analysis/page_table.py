"""Latencies as a table: a row each, its mean, quantiles and their intervals. Computes none."""

from collections.abc import Mapping

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.page_numbers import Figures, fits, interval, number, quantile


def latency_table(rows: Mapping[str, Figures], console: Console, *, first: int) -> Table:
    """Figures in ms by title; the very first row is bold, those after the `first` ones are dim. Without means where
    the page is too narrow for them."""
    table = _table(rows, first, with_mean=True)
    return table if fits(table, console) else _table(rows, first, with_mean=False)


def _table(rows: Mapping[str, Figures], first: int, with_mean: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("ms", no_wrap=True)
    if with_mean:
        table.add_column("mean", justify="right", no_wrap=True)
    names = list(next(iter(rows.values()))["quantiles"])
    with_interval = any(row["quantiles"][q]["low"] is not None for row in rows.values() for q in names)
    for q in names:
        table.add_column(q, justify="right", no_wrap=True)
        if with_interval:
            table.add_column("95 % within", justify="left", no_wrap=True)
    for place, (title, row) in enumerate(rows.items()):
        cells: list[RenderableType] = [Text(title, overflow="ellipsis")]
        if with_mean:
            cells.append(number(row["mean"], "ms"))
        for q in (row["quantiles"][name] for name in names):
            cells += [quantile(q, "ms"), interval(q, "ms")] if with_interval else [quantile(q, "ms")]
        style = "bold" if place == 0 else "dim" if place >= first else ""
        table.add_row(*cells, style=style, end_section=place == first - 1 < len(rows) - 1)
    return table


def notes(found: Figures) -> list[RenderableType]:
    """Why a row lacks intervals or quantiles."""
    quantiles, made = found["quantiles"], []
    if missing := sorted({q["no_interval"] for q in quantiles.values() if q["no_interval"] and not q["too_few"]}):
        made.append(Text(f"No intervals: {', '.join(missing)}.", style="dim"))
    if any(q["too_few"] for q in quantiles.values()):
        needs = ", ".join(f"{name} {q['turns_needed']}" for name, q in quantiles.items())
        made.append(Text(f"Answers a quantile needs before it means something: {needs}. n<: fewer.", style="dim"))
    return list(made)


def grid(rows: list[tuple[str, str]]) -> Table:
    """Lines with a title each."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for title, line in rows:
        table.add_row(title, line)
    return table
