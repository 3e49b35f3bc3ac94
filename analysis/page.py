"""The report as a page of text, for a terminal or a CI log. Knows how figures look; computes none.

Reads well without colours: what a colour says, a word says too.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from analysis import page_conversation, page_duplex, page_scraped, page_targets
from analysis.checks import CHECKS
from analysis.counting import CONVERSATIONS
from analysis.page_numbers import Figures, fits, interval, number, percent, quantile, rate

SEVERITY_STYLE = {"invalid": "bold red", "warning": "yellow", "note": "cyan"}
TITLES = {"ttfc_ms": "TTFC", "ttfa_ms": "TTFA", "e2e_ms": "E2E", "rtf": "RTF"}


def render(figures: Figures, console: Console) -> str:
    """The whole page, as wide as `console`, with its colours if it has any; no line ends in blanks."""
    with console.capture() as captured:
        _print(figures, console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _print(figures: Figures, console: Console) -> None:
    parts: list[RenderableType] = [_header(figures), doubts(figures)]
    if figures["targets"]:
        parts.append(page_targets.part(figures["targets"], figures["bottleneck"]))
    parts.append(_turns(figures))
    if figures["overall"]["answered"]:
        parts += [_by_text(figures, console), _intervals(figures, console), _throughput(figures), _stalls(figures)]
    if figures["server"]:
        parts.append(_server(figures["server"]))
    if figures["scraped"]:
        parts.append(page_scraped.part(figures["scraped"]))
    if figures["conversation"]:
        parts += page_conversation.parts(figures["conversation"], console)
    if figures["duplex"]:
        parts += page_duplex.parts(figures["duplex"], console)
    for part in parts:
        console.print(part)
        console.print()


# ------------------------------------------------------------------------------------------------------------ header


def _header(figures: Figures) -> RenderableType:
    what = figures["what"]
    scenario = what["scenario"] or {}
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row("target", Text(str(what["target"] or "unknown")))
    rows.add_row("scenario", Text(_scenario(what, scenario)))
    rows.add_row("load", Text(_load(what, scenario)))
    rows.add_row("time", Text(_time(what, figures["turns"], scenario)))
    rows.add_row("workers", Text(_workers(what)))
    return Group(Rule(Text(f"Cicada: {figures['run']}", style="bold"), align="left"), rows)


def _scenario(what: Figures, scenario: Figures) -> str:
    parts = [str(what["name"] or scenario.get("name") or "unnamed"), " + ".join(what["protocols"])]
    parts.append("dialect " + ", ".join(what["dialects"]))
    if scenario.get("format") and set(what["protocols"]) - set(CONVERSATIONS):
        parts.append(str(scenario["format"]))
    if what["voices"]:
        parts.append(("voice " if len(what["voices"]) == 1 else "voices ") + ", ".join(what["voices"][:4]))
    return " · ".join(part for part in parts if part)


def _load(what: Figures, scenario: Figures) -> str:
    users = f"{what['users']} users" if what["users"] is not None else "users unknown"
    if what["levels"]:
        users = f"levels of {', '.join(map(str, what['levels']))} users"
    if scenario.get("arrivals", "closed") == "closed":
        think = scenario.get("think_s")
        if isinstance(think, list | tuple):
            think = " to ".join(f"{part:g}" for part in dict.fromkeys(think))
        return f"{users} · closed loop, {think} s between turns" if think is not None else f"{users} · closed loop"
    return f"{users} at most · open loop, {scenario['arrivals']} arrivals, {scenario.get('rate')} starts a second"


def _time(what: Figures, turns: Figures, scenario: Figures) -> str:
    began, ended = what["started_wall_at"], what["ended_wall_at"]
    parts = []
    if began:
        parts.append(datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    if began and ended:
        parts.append(f"{ended - began:,.0f} s")
    if what["measured_wall_s"]:
        parts.append(f"{what['measured_wall_s']:,.1f} s measured")
    if turns["warm_up"]:
        of_what = "of each level" if what["levels"] else f"of {scenario.get('warm_up_s')} s"
        parts.append(f"warm-up {of_what} ({turns['warm_up']:,} turns) left out")
    if what["exit_reason"]:
        parts.append(f"ended: {what['exit_reason']}")
    return " · ".join(parts) or "unknown"


def _workers(what: Figures) -> str:
    workers = what["workers"]
    hosts = sorted({str(worker["host"]) for worker in workers.values()})
    stamps = {"kernel": "kernel timestamps", "user": "timestamps of the process"}
    shown = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
    parts = [f"{len(workers)} on {shown}", *(stamps.get(clock, clock) for clock in what["clocks"])]
    return " · ".join(parts)


# ------------------------------------------------------------------------------------------------------ doubts, turns


def doubts(figures: Figures) -> RenderableType:
    """The reasons to distrust a run, the gravest first: what every page opens with."""
    found = figures["reasons"]
    if not found:
        return Text(f"No reason to distrust this run: {len(CHECKS)} checks passed.", style="green")
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for reason in found:
        style = SEVERITY_STYLE[reason["severity"]]
        line = Text.assemble((reason["code"], style), ": ", reason["line"])
        rows.add_row(Text(reason["severity"].upper(), style=style), line)
    return Group(Text("Reasons to distrust this run", style="bold"), Padding(rows, (0, 0, 0, 2)))


def _turns(figures: Figures) -> RenderableType:
    turns = figures["turns"]
    rate = turns["success_rate_percent"]
    line = Text.assemble(
        ("Turns  ", "bold"),
        f"{turns['started']:,} started: {turns['answered']:,} answered, {turns['failed']:,} failed, ",
        f"{turns['cut']:,} cut · success ",
        (percent(rate), "bold" if rate is None or rate == 100 else "bold yellow"),
        f" of those not cut · {turns['sessions']:,} sessions",
    )
    parts: list[RenderableType] = [line]
    if not figures["turns"]["answered"]:
        parts.append(Text("No measured turn succeeded: there is no latency to tell.", style="bold red"))
    if figures["failures"] or figures["cut"]:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(justify="right", no_wrap=True)
        rows.add_column(no_wrap=True)
        rows.add_column(overflow="fold")
        for failure in figures["failures"]:
            where = f"  [{failure['request_id']}]" if failure["request_id"] else ""
            rows.add_row(
                f"{failure['turns']:,}", failure["error_kind"], Text(f"{failure['example'] or ''}{where}", "dim")
            )
        for kind, n in figures["cut"].items():
            rows.add_row(f"{n:,}", kind, Text("cut: neither success nor failure", "dim"))
        parts.append(Padding(rows, (0, 0, 0, 2)))
    return Group(*parts)


# ------------------------------------------------------------------------------------------------------------ latency


def _by_text(figures: Figures, console: Console) -> RenderableType:
    names = list(TITLES)
    tables = [_latency_table(figures, names)]
    if not fits(tables[0], console):
        tables = [_latency_table(figures, names[:2]), _latency_table(figures, names[2:], counts=False)]
    spaced = [part for table in tables for part in (Text(), table)]
    return Group(
        Text.assemble(
            ("Latency", "bold"), " in ms from the intended start; RTF: from sending to the last chunk / audio"
        ),
        *spaced[1:],
        *_footnote(figures),
    )


def _told(overall: Figures) -> list[str]:
    """The quantiles that at least all texts together can tell; p50 in any case."""
    quantiles = overall["ttfc_ms"]["quantiles"].items()
    return [name for name, q in quantiles if name == "p50" or not q["too_few"]]


def _latency_table(figures: Figures, metrics: Sequence[str], counts: bool = True) -> Table:
    told = _told(figures["overall"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("\ntext", no_wrap=True, max_width=22, min_width=17, overflow="ellipsis")
    if counts:
        table.add_column("\nn", justify="right", no_wrap=True)
        table.add_column("\nsuccess", justify="right", no_wrap=True)
    for metric in metrics:
        for place, q in enumerate(told):
            title = TITLES[metric] if place == 0 else ""
            table.add_column(f"{title}\n{q}", justify="right", no_wrap=True, min_width=5)
    rows = [*figures["texts"].items(), ("all", figures["overall"])]
    for place, (name, row) in enumerate(rows):
        cells: list[RenderableType] = [Text(name)]
        if counts:
            cells += [f"{row['answered']:,}", percent(row["success_rate_percent"])]
        for metric in metrics:
            cells += [quantile(row[metric]["quantiles"][q], metric) for q in told]
        table.add_row(*cells, style="bold" if name == "all" else "", end_section=place == len(rows) - 2)
    return table


def _footnote(figures: Figures) -> list[RenderableType]:
    rows = [figures["overall"], *figures["texts"].values()]
    if not any(q["too_few"] for row in rows for name in TITLES for q in row[name]["quantiles"].values()):
        return []
    needs = figures["overall"]["ttfc_ms"]["quantiles"].items()
    line = ", ".join(f"{name} {q['turns_needed']}" for name, q in needs)
    return [Text(f"Successes a quantile needs before it means something: {line}. n<: fewer.", style="dim")]


def _intervals(figures: Figures, console: Console) -> RenderableType:
    overall = figures["overall"]
    n, sessions = overall["e2e_ms"]["n"], overall["e2e_ms"]["sessions"]
    table = _interval_table(overall, with_mean=True)
    if not fits(table, console):
        table = _interval_table(overall, with_mean=False)
    told_any = any(q["low"] is not None for q in overall["ttfc_ms"]["quantiles"].values())
    parts: list[RenderableType] = [
        Text.assemble(
            ("Overall", "bold"),
            f" · {n:,} successes in {sessions:,} sessions{', by which intervals are clustered' if told_any else ''}",
        ),
        table,
    ]
    told = [q for name in INTERVALS_OF for q in overall[name]["quantiles"].values() if not q["too_few"]]
    if missing := sorted({q["no_interval"] for q in told if q["no_interval"]}):
        parts.append(Text(f"No intervals: {', '.join(missing)}.", style="dim"))
    if any(q["open_high"] for q in told):
        parts.append(Text("+ the interval reaches the greatest value seen; the truth may lie beyond.", style="dim"))
    return Group(*parts)


INTERVALS_OF = {**TITLES, "ttfc_from_send_ms": "TTFC from actual send"}


def _interval_table(overall: Figures, with_mean: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("all texts, ms", no_wrap=True)
    if with_mean:
        table.add_column("mean", justify="right", no_wrap=True)
    told = _told(overall)
    with_intervals = any(overall["ttfc_ms"]["quantiles"][q]["low"] is not None for q in told)
    for q in told:
        table.add_column(q, justify="right", no_wrap=True)
        if with_intervals:
            table.add_column("95 % within", justify="left", no_wrap=True)
    for metric, title in INTERVALS_OF.items():
        cells: list[RenderableType] = [title]
        if with_mean:
            cells.append(number(overall[metric]["mean"], metric))
        for q in (overall[metric]["quantiles"][name] for name in told):
            cells += [quantile(q, metric), interval(q, metric)] if with_intervals else [quantile(q, metric)]
        table.add_row(*cells, style="dim" if metric == "ttfc_from_send_ms" else "")
    return table


# --------------------------------------------------------------------------------------------- throughput, playback


def _throughput(figures: Figures) -> RenderableType:
    rates = figures["throughput"]
    if rates["wall_s"] is None:
        return Text("Throughput: unknown, no measured turn has an end.", style="dim")
    shown = (
        ("ASPS", rate(rates["asps"])),
        ("RPS", rate(rates["rps"])),
        ("CPS", rate(rates["cps"])),
        ("RTF mean", number(rates["rtf_mean"], "rtf")),
        ("RTF median", number(rates["rtf_median"], "rtf")),
    )
    parts: list[Any] = [("Throughput", "bold"), f" over {rates['wall_s']:,.1f} s"]
    for name, value in shown:
        parts += [f" · {name} ", (value, "bold")]
    units = "ASPS, RPS, CPS: seconds of audio received, requests handled, characters answered, each a second."
    return Group(Text.assemble(*parts), Text(units, style="dim"))


def _stalls(figures: Figures) -> RenderableType:
    stalls = figures["stalls"]
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


# ------------------------------------------------------------------------------------------------------------- server


def _server(server: Figures) -> RenderableType:
    counts = [
        f"{server['joined']:,} joined by request id",
        f"{server['only_client']:,} only the client's",
        f"{server['only_server']:,} only the server's",
        f"{sum(source['other_runs'] for source in server['sources']):,} of other runs",
        f"{sum(source['bad_lines'] for source in server['sources']):,} unreadable",
    ]
    title = Text.assemble(("Beside the server's own rows", "bold"), " · rows: " + ", ".join(counts))
    figures = server["figures"]
    if not figures["client_ttfc_ms"]["n"]:
        return Group(title, Text("No measured success has a server row: nothing to compare.", style="dim"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("ms", no_wrap=True)
    for q in ("p50", "p95"):
        table.add_column(q, justify="right", no_wrap=True)
    titles = {
        "client_ttfc_ms": "client: TTFC from the intended start",
        "before_server_ms": "  before the server had the request",
        "server_ttfb_ms": "  server: TTFB",
        "server_queue_wait_ms": "    of it, wait in the queue",
        "after_server_ms": "  after the server handed over the first audio",
        "rest_ms": "  network + client: TTFC - TTFB",
    }
    for name, words in titles.items():
        if name in figures:
            quantiles = figures[name]["quantiles"]
            table.add_row(words, *(quantile(quantiles[q], "ms") for q in ("p50", "p95")))
    return Group(title, table)
