"""A comparison in words: a table and a sentence, for a terminal, a pull request or a CI server. Computes nothing.

Reads well without colours: what a colour says, a word says too.
"""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from analysis.comparison import KINDS, Comparison, Judged, Unit, Verdict
from analysis.exports.junit import Case
from analysis.page_numbers import NOTHING, number, percent

STYLE: dict[Verdict, str] = {
    "worse": "bold red",
    "better": "green",
    "same": "",
    "no evidence": "dim",
    "not comparable": "yellow",
}
NAMED = 4  # figures that the sentence names; the table has the rest


def render(found: Comparison, console: Console) -> str:
    """The whole page, as wide as `console`, with its colours if it has any; no line ends in blanks."""
    with console.capture() as captured:
        for part in _parts(found):
            console.print(part)
            console.print()
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _parts(found: Comparison) -> list[RenderableType]:
    parts: list[RenderableType] = [Rule(Text(title(found), style="bold"), align="left")]
    if found.bars:
        parts.append(_listed("These runs cannot be compared", found.bars, "bold red"))
    if found.notes:
        parts.append(_listed("To know when one reads this", found.notes, ""))
    for kind in KINDS:
        figures = [judged for judged in found.figures if judged.figure.of == kind]
        if figures:
            parts.append(Group(_table(found, figures, kind.capitalize()), *_uncompared(figures)))
    return [*parts, Text(sentence(found), style="bold red" if found.exit_status else "bold")]


def _listed(heading: str, lines: Sequence[str], style: str) -> RenderableType:
    rows = Table.grid(padding=(0, 1))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for line in lines:
        rows.add_row(Text("-"), Text(line))
    return Group(Text(heading, style=style or "bold"), Padding(rows, (0, 0, 0, 2)))


def _table(found: Comparison, figures: Sequence[Judged], heading: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    first, *rest = _header(found)
    table.add_column(f"{heading}, {first}", no_wrap=True)
    for column in rest[:-1]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(rest[-1], overflow="fold")
    for judged in figures:
        name, *cells, call = _row(found, judged)
        told = judged.verdict if judged.verdict == "not comparable" else call
        table.add_row(Text(name), *map(Text, cells), Text(told, style=STYLE[judged.verdict]))
    return table


def _uncompared(figures: Sequence[Judged]) -> list[Text]:
    """Why figures could not be compared, each reason once."""
    named: dict[str, list[str]] = {}
    for judged in figures:
        if judged.verdict == "not comparable":
            named.setdefault(judged.why, []).append(judged.figure.title)
    return [Text(f"Not comparable: {', '.join(names)} ({why}).", style="dim") for why, names in named.items()]


def title(found: Comparison) -> str:
    """What was compared with what."""
    return f"Cicada: {found.before} (before) and {found.after} (after)"


def rows(found: Comparison) -> list[list[str]]:
    """The table: its header, then a row a figure; nothing where nothing was compared."""
    if not found.figures:
        return []
    body = [[_name(found, judged), *_row(found, judged)[1:]] for judged in found.figures]
    return [_header(found), *body]


def _header(found: Comparison) -> list[str]:
    return ["figure", "before", "after", "change", _within(found), "relative", "verdict"]


def _within(found: Comparison) -> str:
    return f"{found.confidence * 100:g} % within"


def _row(found: Comparison, judged: Judged) -> list[str]:
    unit, told = judged.figure.unit, judged.difference
    relative = NOTHING if told.relative is None or unit == "%" else f"{told.relative * 100:+.1f} %"
    return [
        judged.figure.title,
        _value(told.before, unit),
        _value(told.after, unit),
        _change(told.value, unit),
        _interval(judged),
        relative,
        _call(found, judged),
    ]


def _value(value: float | None, unit: Unit) -> str:
    if value is None:
        return NOTHING
    match unit:
        case "%":
            return percent(value * 100)
        case "/s":
            return f"{value:.2f} /s"
        case "rtf":
            return number(value, "rtf")
        case "ms":
            return f"{number(value, 'ms')} ms"


def _change(value: float | None, unit: Unit) -> str:
    if value is None:
        return NOTHING
    return _signed(value, unit) + _CHANGED_BY[unit]


_CHANGED_BY: dict[Unit, str] = {"ms": " ms", "%": " points", "/s": " /s", "rtf": ""}


def _signed(value: float, unit: Unit) -> str:
    match unit:
        case "%":
            return f"{value * 100:+.2f}"
        case "/s":
            return f"{value:+.2f}"
        case _:
            return ("" if value < 0 else "+") + number(value, unit)


def _interval(judged: Judged) -> str:
    told, unit = judged.difference, judged.figure.unit
    if told.low is None or told.high is None:
        return NOTHING
    low = "open" if told.open_low else _signed(told.low, unit)
    return f"{low} to {'open' if told.open_high else _signed(told.high, unit)}"


def _call(found: Comparison, judged: Judged) -> str:
    """The verdict in words."""
    match judged.verdict:
        case "same":
            return f"the same within {_margin(found, judged)}"
        case "no evidence":
            return judged.why or "no evidence of a difference"
        case _:
            return f"{judged.verdict}: {judged.why}" if judged.why else judged.verdict


def _margin(found: Comparison, judged: Judged) -> str:
    if judged.figure.unit == "%":
        return _points(found)
    return f"{found.margin * 100:g} %"


def _points(found: Comparison) -> str:
    points = found.share_margin * 100
    return f"{points:g} point{'' if points == 1 else 's'}"


def _name(found: Comparison, judged: Judged) -> str:
    """A figure's name; with its kind where there are both kinds."""
    kinds = {each.figure.of for each in found.figures}
    return judged.figure.title if len(kinds) == 1 else f"{judged.figure.of}: {judged.figure.title}"


def sentence(found: Comparison) -> str:
    """What the comparison says."""
    limits = f"{found.margin * 100:g} % (shares: {_points(found)})"
    if found.bars:
        anyway = "; --allow-different compares them all the same" if found.only_different else ""
        return f"Not compared, for {len(found.bars)} reason{'' if len(found.bars) == 1 else 's'}{anyway}."
    if worse := found.of("worse"):
        named = ", ".join(_told(found, judged) for judged in worse[:NAMED])
        more = f" and {len(worse) - NAMED} more" if len(worse) > NAMED else ""
        counts = f"{len(worse)} of {len(found.figures)} figures"
        return f"Regression: {counts} got worse by more than {limits}: {named}{more}."
    if found.exit_status:
        return f"Nothing could be compared: {_first_why(found)}."
    told_of = [
        (len(found.of("better")), "better"),
        (len(found.of("same")), "the same within that"),
        (len(found.of("no evidence")), "undecided"),
        (len(found.of("not comparable")), "not comparable"),
    ]
    told = ", ".join(f"{n} {words}" for n, words in told_of if n)
    return f"No regression: no figure is shown to be worse by more than {limits}; of {len(found.figures)}, {told}."


def _first_why(found: Comparison) -> str:
    latency = [judged for judged in found.figures if judged.figure.q is not None and judged.why]
    return f"{_name(found, latency[0])}: {latency[0].why}" if latency else "no latency was measured"


def _told(found: Comparison, judged: Judged) -> str:
    told, unit = judged.difference, judged.figure.unit
    if told.before is None or told.after is None:
        return f"{_name(found, judged)} ({judged.why})"
    relative = f", {told.relative * 100:+.1f} %" if told.relative is not None and unit != "%" else ""
    return f"{_name(found, judged)} ({_value(told.before, unit)} to {_value(told.after, unit)}{relative})"


def cases(found: Comparison) -> list[Case]:
    """A case a figure: failed if it is worse, skipped if it could not be compared; or one a reason not to compare."""
    if found.bars:
        return [Case(bar.split(": ")[0], "skip", bar) for bar in found.bars]
    status: dict[Verdict, Any] = {"worse": "fail", "not comparable": "skip"}
    made = []
    for judged in found.figures:
        _, before, after, change, interval, _, call = _row(found, judged)
        text = f"{call}; {before} to {after}, change {change} ({_within(found)} {interval})"
        made.append(Case(f"{judged.figure.of}: {judged.figure.title}", status.get(judged.verdict, "pass"), text))
    return made


def as_data(found: Comparison) -> dict[str, Any]:
    """The comparison as plain data, for JSON; durations in ms, shares as shares."""
    return {
        "comparison_version": 1,
        "before": found.before,
        "after": found.after,
        "margin": found.margin,
        "share_margin": found.share_margin,
        "confidence": found.confidence,
        "exit_status": found.exit_status,
        "sentence": sentence(found),
        "bars": list(found.bars),
        "notes": list(found.notes),
        "figures": [
            {
                "of": judged.figure.of,
                "figure": judged.figure.title,
                "unit": "share" if judged.figure.unit == "%" else judged.figure.unit,
                "before": judged.difference.before,
                "after": judged.difference.after,
                "change": judged.difference.value,
                "low": judged.difference.low,
                "high": judged.difference.high,
                "open_low": judged.difference.open_low,
                "open_high": judged.difference.open_high,
                "relative": judged.difference.relative,
                "margin": judged.margin,
                "p_adjusted": judged.p,
                "verdict": judged.verdict,
                "why": judged.why or None,
            }
            for judged in found.figures
        ],
    }
