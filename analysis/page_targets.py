"""Verdicts on targets, as they look: for the page, a pull request, a CI server. Judges nothing."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis.exports.junit import Case
from analysis.page_numbers import NOTHING, percent

Figures = dict[str, Any]

WORDS = {"hold": ("holds", "green"), "miss": ("MISSED", "bold red"), "cannot_tell": ("cannot tell", "yellow")}
_CASES = {"hold": "pass", "miss": "fail", "cannot_tell": "skip"}
HEADER = ("target", "asked", "measured", "", "stretch", "", "turns beyond it")


def part(found: Figures, bottleneck: Figures) -> RenderableType:
    """The table of a run's targets, what they come to, and what would have to become quicker."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for head in HEADER:
        table.add_column(head, no_wrap=head != "turns beyond it", justify="right" if head == "measured" else "left")
    for verdict in found["verdicts"]:
        status, stretch = WORDS[verdict["status"]], WORDS.get(verdict["stretch_status"] or "", (NOTHING, "dim"))
        table.add_row(
            _name(verdict),
            verdict["asked"],
            verdict["measured"],
            Text(status[0], style=status[1]),
            verdict["stretch"] or NOTHING,
            Text(stretch[0], style=stretch[1]),
            beyond(verdict),
        )
    title = Text(f"Targets · {found['source']}", style="bold")
    return Group(title, table, Text(summary(found)), Text(remaining(bottleneck)))


def remaining(bottleneck: Figures) -> str:
    """The part of the way to the first audio that takes most, or why it cannot be told."""
    told = [
        f"{found['part']}, {found['mean_ms']:,.0f} ms ({percent(found['share_percent'])}) of a {kind}'s mean"
        for kind, found in (("request", bottleneck["requests"]), ("turn", bottleneck["conversations"]))
        if found
    ]
    return f"Remaining bottleneck: {'; '.join(told) or 'cannot tell, there are no server rows (--server-log FILE)'}."


def summary(found: Figures) -> str:
    """How many hold; which share of the turns lay within all limits."""
    statuses = [verdict["status"] for verdict in found["verdicts"]]
    parts = [f"{statuses.count('hold')} of {len(statuses)} targets hold"]
    if untold := statuses.count("cannot_tell"):
        parts.append(f"{untold} cannot be judged")
    if good := found["goodput"]:
        parts.append(
            f"goodput {good['share'] * 100:.1f} % of {good['n']:,} turns within every limit of a turn "
            f"(at least {good['at_least'] * 100:.1f} %, 95 % sure)"
        )
    return "; ".join(parts) + "."


def beyond(verdict: Figures) -> str:
    """What is known of the turns beyond the limit, or why nothing is."""
    if verdict["status"] == "cannot_tell" or verdict["bad_share"] is None:
        return str(verdict["why"])
    proof = "proven" if verdict["proven"] else "not proven"
    allowed = f"{verdict['allowed'] * 100:.3g} % allowed"
    told = f"{verdict['bad_share'] * 100:.2g} %, at most {verdict['bad_at_most'] * 100:.2g} % ({allowed})"
    return f"{told}: {proof}" if verdict["status"] == "hold" else told


def rows(found: Figures) -> list[Sequence[str]]:
    """The same table as plain cells, its header first."""
    lines: list[Sequence[str]] = [HEADER]
    for verdict in found["verdicts"]:
        stretch = WORDS[verdict["stretch_status"]][0] if verdict["stretch_status"] else NOTHING
        lines.append((_name(verdict), verdict["asked"], verdict["measured"], WORDS[verdict["status"]][0],
                      verdict["stretch"] or NOTHING, stretch, beyond(verdict)))  # fmt: skip
    return lines


def cases(found: Figures) -> list[Case]:
    """A case a target; a stretch goal is told, and fails nothing."""
    return [
        Case(
            _name(verdict),
            _CASES[verdict["status"]],  # type: ignore[arg-type]
            f"{verdict['measured']}, asked {verdict['asked']}. {beyond(verdict)}".strip(),
        )
        for verdict in found["verdicts"]
    ]


def _name(verdict: Figures) -> str:
    return f"{verdict['name']} ({verdict['of']})" if verdict["apart"] else str(verdict["name"])
