"""The conversations' part of the page. Knows how figures look; computes none."""

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis import components
from analysis.page_numbers import Figures, milliseconds, number, percent, quantile
from analysis.page_table import latency_table, notes

CLIENTS_SHOWN = 8
BAR_COLUMNS = 40
TITLES = {
    "floor_transfer_offset_ms": "floor transfer offset",
    "ttfc_ms": "TTFC, first chunk",
    "ttfa_ms": "TTFA, first sound",
}
OUTCOME_STYLE = {"answered": "", "early": "", "cut": "dim"}
BAR, AXIS = "\N{FULL BLOCK}", "\N{BOX DRAWINGS LIGHT VERTICAL}"


def parts(found: Figures, console: Console) -> list[RenderableType]:
    """Everything the page says of conversations, in its order."""
    made: list[RenderableType] = [_turns(found)]
    if found["no_results"]:
        made.append(no_results(found["no_results"]))
    if found["answered"]:
        made.append(_latency(found, console))
        if found["by_load"]:
            made.append(_by_load(found["by_load"]))
        made += [_turn_taking(found), playback(found["stalls"])]
    if found["server"]:
        made += _server(found["server"], console)
    return made


def _turns(found: Figures) -> RenderableType:
    told: list[str | tuple[str, str]] = [("Conversations", "bold"), f"  {found['started']:,} turns in "]
    told.append(f"{found['sessions']:,} calls: ")
    for place, (name, n) in enumerate(found["outcomes"].items()):
        told += [", " if place else "", (f"{n:,} {name}", OUTCOME_STYLE.get(name, "yellow"))]
    greeting = found["greeting"]
    if greeting["sessions"]:
        told.append(
            f" · {greeting['sessions']:,} calls opened with a greeting ({greeting['mean_s']:.1f} s), not counted"
        )
    return Text.assemble(*told)


def no_results(told: Figures) -> RenderableType:
    """Why there is no latency, and what to do."""
    lines = [Text.assemble(("No results", "bold red"), f": {told['line']}.")]
    if top := told["top_failure"]:
        example = f': "{top["example"]}"' if top["example"] else ""
        lines.append(Text(f"Most often ({top['turns']:,} turns): {top['error_kind']}{example}"))
    lines.append(Text(told["advice"]))
    return Group(*lines)


# ------------------------------------------------------------------------------------------------------------ latency


def _latency(found: Figures, console: Console) -> RenderableType:
    n = found["floor_transfer_offset_ms"]
    rows = {title: found[metric] for metric, title in TITLES.items()}
    queries = {name: query["floor_transfer_offset_ms"] for name, query in found["queries"].items()}
    queries = {name: row for name, row in queries.items() if not row["quantiles"]["p50"]["too_few"]}
    if len(queries) > 1:
        rows |= {f"  {name}": row for name, row in queries.items()}
    heading = Text.assemble(
        ("Latency", "bold"),
        f" in ms from the user's last voiced sample · {n['n']:,} answers heard in {n['sessions']:,} calls",
    )
    return Group(heading, latency_table(rows, console, first=len(TITLES)), *notes(n))


def _by_load(levels: list[Figures]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    for _ in levels:
        table.add_column(justify="right", no_wrap=True)
    spans = [
        f"{level['least']:,}" if level["least"] == level["greatest"] else f"{level['least']:,} to {level['greatest']:,}"
        for level in levels
    ]
    quantiles = [level["floor_transfer_offset_ms"]["quantiles"] for level in levels]
    table.add_row("calls up at the time", *spans)
    table.add_row("answers", *(f"{level['answers']:,}" for level in levels))
    for q in ("p50", "p95"):
        table.add_row(f"floor transfer offset {q}", *(quantile(found[q], "ms") for found in quantiles))
    return Group(
        Text.assemble(("Under load", "bold"), " · the same figure (ms), by how many calls were up as the user stopped"),
        Padding(table, (0, 0, 0, 2)),
    )


# -------------------------------------------------------------------------------------------------------- turn-taking


def _turn_taking(found: Figures) -> RenderableType:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    taking = found["turn_taking"]
    if taking:
        early = f", {number(taking['overlap_mean_ms'], 'ms')} ms on average" if taking["overlaps"] else ""
        rows.add_row(
            "gaps, overlaps",
            f"{percent(taking['gap_percent'])} of {taking['n']:,} answers came after the user's last word, "
            f"{percent(taking['overlap_percent'])} before it ({taking['overlaps']:,}{early})",
        )
        rows.add_row(
            "reverse barge-ins",
            f"{taking['reverse_barge_ins']:,} answers sooner than {taking['threshold_s']:g} s after it (S3's count: "
            "quick answers are among them; overlaps are the true ones)",
        )
    rows.add_row("barge-in", _barge_in(found["barge_in"]))
    false = found["false_barge_ins"]
    rows.add_row("false barge-ins", f"{false:,} times the agent stopped though the user was silent")
    if found["stale"]["turns"]:
        stale = found["stale"]
        rows.add_row(
            "stale speech", f"{stale['total_s']:.1f} s of earlier answers in {stale['turns']:,} turns, not counted"
        )
    if found["timeouts"]:
        rows.add_row("timeouts", f"{found['timeouts']:,} turns without an answer")
    return Group(Text("Turn-taking", style="bold"), Padding(rows, (0, 0, 0, 2)))


def _barge_in(told: Figures | None) -> str:
    if told is None:
        return "none tried (scenario key barge_in_share)"
    silence = told["time_to_silence_ms"]["quantiles"]
    p50, p95 = (milliseconds(silence[q]) for q in ("p50", "p95"))
    return (
        f"{told['n']:,} tried, the agent yielded to {percent(told['yielded_percent'])} ({told['no_yield']:,} not); "
        f"silent after p50 {p50}, p95 {p95}"
    )


def playback(stalls: Figures | None) -> RenderableType:
    """How often answers would stall, by how much is buffered before they are played."""
    if stalls is None:
        return Text("Playback: unknown, no arrivals of chunks were kept.", style="dim")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for _ in stalls["stalled_percent"]:
        table.add_column(justify="right")
    table.add_row("played after buffering", *(f"{prebuffer} ms" for prebuffer in stalls["stalled_percent"]))
    table.add_row("answers that stall", *(percent(share) for share in stalls["stalled_percent"].values()))
    needed = stalls["min_prebuffer_ms"]["quantiles"]
    p50, p95 = (quantile(needed[q], "ms").plain for q in ("p50", "p95"))
    return Group(
        Text.assemble(("Playback", "bold"), f" · prebuffer (ms) that avoids every stall: p50 {p50}, p95 {p95}"),
        Padding(table, (0, 0, 0, 2)),
    )


# --------------------------------------------------------------------------------------------------------- the server

KINDS = {"trace": "the bundled server's trace", "log": "the server's log", "in-band": "what the server told in band"}


def _server(server: Figures, console: Console) -> list[RenderableType]:
    counts = [
        f"{server['turns_with_figures']:,} turns with figures",
        f"{server['joined']:,} figures joined",
        f"{server['greeting']:,} from before the first turn",
        f"{server['unplaced']:,} of no turn",
        f"{sum(source['other_runs'] for source in server['sources']):,} of other runs",
        f"{sum(source['bad_lines'] for source in server['sources']):,} broken lines",
    ]
    made: list[RenderableType] = [
        Text.assemble(("Components", "bold"), f" · from {KINDS[server['kind']]}: ", ", ".join(counts))
    ]
    if server["joined"]:
        summary = server["components"]
        made.append(components.table(summary, CLIENTS_SHOWN))
        made += [Text(note, style="dim") for note in components.notes(summary, CLIENTS_SHOWN)]
    else:
        made.append(Text("None of its figures is this run's: is it of another time, or of another server?", "yellow"))
    made += [Text(f"{n:,} figures not joined: {reason}.", "yellow") for reason, n in server["unknown"].items()]
    shifts = {round(source["offset_s"]) for source in server["sources"] if source["offset_s"]}
    if apart := sorted(shift for shift in shifts if shift):
        made.append(
            Text(f"The log's clock is {', '.join(f'{shift:+,} s' for shift in apart)} off the clients'.", "dim")
        )
    grouped: list[RenderableType] = [Group(*made)]
    if server["waterfall"]:
        grouped.append(_waterfall(server, console))
    elif server["joined"]:
        grouped.append(Text("No answered turn has figures of the server: no waterfall.", style="dim"))
    return grouped


def _waterfall(server: Figures, console: Console) -> RenderableType:
    told = server["waterfall"]
    how = "client and server share a clock" if server["one_clock"] else "by the server's durations"
    worst, known = told["bottleneck"], told["bottleneck_of_the_known"]
    line = Text.assemble(
        ("Waterfall", "bold"),
        f" of {told['n']:,} turns, from the user's last sample to the agent's first ({how})",
    )
    made: list[RenderableType] = [line, _bars(told["stages"], told["total_mean_ms"], console)]
    if worst:
        made.append(Text.assemble("Bottleneck: ", (_part(worst), "bold"), _next(worst, known)))
    if slowest := server["slowest"]:
        which = f"turn {slowest['turn']} of {slowest['stream_id']}"
        query = f", {slowest['query']}" if slowest["query"] else ""
        total = slowest["floor_transfer_offset_ms"]
        made += [
            Text(""),
            Text.assemble(("Slowest turn", "bold"), f" · {total:,.0f} ms · {which}{query}"),
            _bars(slowest["stages"], total, console),
        ]
    return Group(*made)


def _part(told: Figures) -> str:
    name = "network, waiting and the unexplained rest" if told["part"] == "rest" else told["part"]
    return f"{name}, {told['mean_ms']:,.0f} ms ({told['share_percent']:.0f} %)"


def _next(worst: Figures, known: Figures | None) -> str:
    if worst["part"] != "rest" or known is None:
        return " of the mean."
    return f" of the mean; of what the server told of, {_part(known)}."


def _bars(stages: list[Figures], total_ms: float, console: Console) -> Table:
    """A line a stage; its bar begins where the one before it ended. A negative stage has no bar."""
    summed = "mean_ms" in stages[0]
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for _ in range(3 if summed else 1):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    columns = BAR_COLUMNS if console.width >= 110 else BAR_COLUMNS * 3 // 4
    amount = "mean_ms" if summed else "ms"
    whole = max(sum(max(0.0, stage[amount]) for stage in stages), 1e-9)
    if summed:
        table.add_row(Text("  ms", "dim"), Text("mean", "dim"), Text("p50", "dim"), Text("share", "dim"), "")
    begun = 0.0
    for stage in stages:
        value = stage[amount]
        length = max(0.0, value)
        first, last = round(begun / whole * columns), round((begun + length) / whole * columns)
        begun += length
        bar = Text(" " * first + (BAR * (last - first) or (AXIS if length else "")))
        cells: list[RenderableType] = [f"  {stage['title']}", number(value, "ms")]
        if summed:
            cells += [number(stage["p50_ms"], "ms"), percent(stage["share_percent"])]
        table.add_row(*cells, bar)
    if summed:
        table.add_row(Text("  together", "bold"), Text(number(total_ms, "ms"), "bold"), "", "", "")
    return table
