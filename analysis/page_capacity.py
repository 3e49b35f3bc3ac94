"""The answer to "how many at once?" as a page of text. Knows how figures look; computes none."""

from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from analysis import page_scraped
from analysis.page import doubts
from analysis.page_numbers import NOTHING, number, rate

Figures = dict[str, Any]

LATENCIES = {
    "ttfc": "TTFC",
    "ttfa": "TTFA",
    "floor_transfer_offset": "floor transfer\noffset",
    "duplex_transfer_offset": "full duplex\noffset",
    "ttft": "TTFT",
}
OUTCOMES = {
    "pass": ("pass", "bold green"),
    "fail": ("FAIL", "bold red"),
    "undecided": ("undecided", "yellow"),
    "promising": ("looked well", "dim"),
}


def render(figures: Figures, console: Console) -> str:
    """The whole page, as wide as `console`; no line ends in blanks."""
    with console.capture() as captured:
        for part in _parts(figures):
            console.print(part)
            console.print()
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _parts(figures: Figures) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Rule(Text(f"Capacity: {figures['run']}", style="bold"), align="left"),
        doubts(figures),
        _answer(figures),
        _table(figures),
        _lines("What decided", _decided(figures)),
        _lines("What gave out first", _gave_out(figures)),
    ]
    if figures["gave_out"]["parts"]:
        parts.append(_grown(figures["gave_out"]))
    if figures["scraped"]:
        parts.append(page_scraped.by_level(figures["scraped"], [level["users"] for level in figures["levels"]]))
    return [*parts, _lines("How it scales", _scaling(figures))]


def _answer(figures: Figures) -> RenderableType:
    style = {0: "bold green", 1: "bold red", 2: "bold yellow"}[figures["exit"]]
    asked = f"\nAsked: {'; '.join(figures['targets'])}" if figures["targets"] else ""
    return Text.assemble((figures["answer"], style), asked)


def _table(figures: Figures) -> RenderableType:
    levels = figures["levels"]
    kinds = [name for name in LATENCIES if any(level["latency"][name] for level in levels)]
    judged = any(level["outcome"] for level in levels)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for head in ("users", "turns", "failed"):
        table.add_column(f"\n{head}", justify="right", no_wrap=True)
    for name in kinds:
        table.add_column(f"{LATENCIES[name]} p50" if "\n" in LATENCIES[name] else f"{LATENCIES[name]}\np50",
                         justify="right", no_wrap=True)  # fmt: skip
        table.add_column("\np95", justify="right", no_wrap=True)
    for head in ("ASPS", "RPS"):
        table.add_column(f"\n{head}", justify="right", no_wrap=True)
    if judged:
        table.add_column("within all\nlimits", justify="right", no_wrap=True)
        table.add_column("\nlevel", no_wrap=True)
    for level in levels:
        cells = [f"{level['users']:,}", f"{level['turns']:,}", f"{level['failed']:,}"]
        for name in kinds:
            found = level["latency"][name]
            cells += [number(found["p50_ms"], "ms"), number(found["p95_ms"], "ms")] if found else [NOTHING, NOTHING]
        cells += [rate(level["asps"]), rate(level["rps"])]
        row: list[RenderableType] = [*cells]
        if judged:
            share = level["goodput_percent"]
            row.append(NOTHING if share is None else f"{share:.1f} %")
            word, style = OUTCOMES["promising" if _scouted(level, figures) else level["outcome"]]
            row.append(Text(f"{word}, generator at its limit" if level["distrust"] else word, style=style))
        table.add_row(*row)
    return table


def _scouted(level: Figures, figures: Figures) -> bool:
    """Whether the search went beyond it without a proof."""
    below = level["users"] < (figures["largest_pass"] or 0)
    return bool(below and level["promising"] and level["outcome"] == "undecided")


def _decided(figures: Figures) -> list[str]:
    """What decided of the two levels that the answer lies between, and of those left undecided."""
    shown = {figures["largest_pass"], figures["smallest_fail"], *figures["undecided"][:3]}
    lines = [f"{level['users']:,}: {level['reason']}" for level in figures["levels"] if level["users"] in shown]
    if figures["passes_above_a_fail"]:
        above = ", ".join(map(str, figures["passes_above_a_fail"]))
        lines.append(f"{above} passed although fewer users failed: the target changed meanwhile, or the order did")
    if figures["wanted"]:
        wanted = figures["wanted"]
        held = "holds" if wanted["holds"] else "cannot tell" if wanted["open"] else "missed"
        stretch = {None: "", True: ", the stretch goal too", False: ", not the stretch goal"}[wanted["stretch_holds"]]
        lines.append(f"{wanted['target']}: {wanted['a_gpu']:.3g} a GPU, {held}{stretch if wanted['holds'] else ''}")
    return lines


def _gave_out(figures: Figures) -> list[str]:
    found = figures["gave_out"]
    refused = [f"{figures['refused']}: the level failed by failures, not by lateness"] if figures["refused"] else []
    return [*refused, found["sentence"], *found["evidence"]]


def _grown(found: Figures) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("part of a turn, mean ms", no_wrap=True)
    for users in (found["from_users"], found["to_users"]):
        table.add_column(f"{users:,} users", justify="right", no_wrap=True)
    table.add_column("growth", justify="right", no_wrap=True)
    for part in found["parts"]:
        growth = f"{part['growth_ms']:+,.1f}"
        table.add_row(part["part"], number(part["from_ms"], "ms"), number(part["to_ms"], "ms"), growth)
    return Padding(table, (0, 0, 0, 2))


def _scaling(figures: Figures) -> list[str]:
    bend, law = figures["knee"], figures["scaling"]
    lines = []
    if bend is None:
        lines.append("knee: none that these levels show")
    else:
        lines.append(
            f"knee of {LATENCIES[bend['of']].replace(chr(10), ' ')}: at about {bend['at']:.0f} users; "
            f"{bend['slope_before_s'] * 1000:.1f} ms a further user before it, {bend['slope_after_s'] * 1000:.1f} after"
        )
    if law is not None:
        peak = f"most throughput at {law['peak']:.0f} users" if law["peak"] else f"no peak claimed: {law['no_peak']}"
        lines.append(
            f"universal scalability law: {law['gamma']:.2f} requests a second by one user, contention "
            f"{law['alpha']:.3f}, coherence {law['beta']:.5f}; {peak}"
        )
    return lines


def _lines(title: str, lines: list[str]) -> RenderableType:
    table = Table.grid()
    table.add_row(Text(title, style="bold"))
    for line in lines or ["nothing to tell"]:
        table.add_row(Padding(Text(line, overflow="fold"), (0, 0, 0, 2)))
    return table
