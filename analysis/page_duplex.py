"""The full-duplex sessions' part of the page. Knows how figures look; computes none."""

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from analysis.checks.reason import n_of
from analysis.page_conversation import no_results, playback
from analysis.page_numbers import NOTHING, Figures, milliseconds, number, percent, quantile, rate
from analysis.page_table import grid, latency_table, notes

TITLES = {
    "floor_transfer_offset_ms": "floor transfer offset",
    "arrival_transfer_offset_ms": "  by arrival",
    "stream_transfer_offset_ms": "  by stream position",
    "ttft_ms": "TTFT",
    "itl_ms": "ITL",
    "e2e_ms": "E2E",
}
FROM_START = {
    "setup_ms": "session set-up",
    "text_from_handshake_ms": "  on to the first text",
    "audio_from_handshake_ms": "  on to the first audio",
}
REASONS_SHOWN = 4


def parts(found: Figures, console: Console) -> list[RenderableType]:
    """Everything the page says of full-duplex sessions, in its order."""
    made: list[RenderableType] = [_turns(found)]
    if found["no_results"]:
        made.append(no_results(found["no_results"]))
    if found["sessions_up"] or found["setup_ms"]["n"]:
        made.append(_latency(found, console))
    if found["answered"]:
        made += [_turn_taking(found), playback(found["stalls"])]
    if found["lag"]:
        made.append(_lag(found))
    if found["hosts"]:
        made.append(_hosts(found["hosts"]))
    if found["server_log"]:
        made.append(_server_log(found["server_log"]))
    made += [_trace(trace) for trace in found["traces"]]
    return made


def _turns(found: Figures) -> RenderableType:
    asked = found["requests"]
    line: list[str | tuple[str, str]] = [("Full duplex", "bold"), f"  {asked['handled']:,} requests handled: "]
    line.append(f"{asked['answered']:,} answered, ")
    line.append((f"{asked['failed']:,} failed", "yellow" if asked["failed"] else ""))
    line.append(f", {asked['cut']:,} more cut · {found['started']:,} turns in {found['sessions']:,} sessions")
    told: list[tuple[str, str]] = []
    if found["failures"]:
        told.append(("failed", ", ".join(f"{n:,} {kind}" for kind, n in found["failures"].items())))
    told.append(("users said", _recordings(found["recordings"])))
    if found["mock"]:
        told.append(("server", "MOCK: the bundled one, which --mock started; no model listened"))
    if found["not_decoded"]:
        told.append(
            ("not decoded", f"{found['not_decoded']:,} of {found['sessions_up']:,} sessions: known by their text only")
        )
    if found["unknown_messages"]:
        told.append(("unknown", f"{found['unknown_messages']:,} messages of kinds that are not known"))
    if (waiting := found["still_waiting"])["sessions"]:
        n = waiting["sessions"]
        told.append(
            (
                "set-up",
                f"{n:,} {'was' if n == 1 else 'were'} still waiting after up to {waiting['longest_s']:,.1f} s when the "
                "run or its part ended: in no figure of set-up",
            )
        )
    told.append(
        (
            "rates",
            f"{rate(found['tokens_per_second'])} tokens/s (of one request: "
            f"{_p50(found['request_tokens_per_second'])}), {rate(found['requests_per_second'])} requests/s, over "
            f"{NOTHING if found['wall_s'] is None else format(found['wall_s'], ',.1f')} s",
        )
    )
    made: list[RenderableType] = [Text.assemble(*line), Padding(grid(told), (0, 0, 0, 2))]
    if len(found["modes"]) > 1:
        made += [Text(), _modes(found["modes"])]
    return Group(*made)


def _recordings(told: Any) -> str:
    if not isinstance(told, dict):
        return "unknown: run.json does not say"
    names = ", ".join(str(name) for name in told.get("names") or ())
    return f"{told.get('source')} recordings" + (f" ({names})" if names else "")


def _p50(found: Figures) -> str:
    q = found["quantiles"]["p50"]
    return f"n<{q['turns_needed']}" if q["too_few"] else f"{rate(q['value'])} (p50)"


def _modes(modes: dict[str, Figures]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("\nmode", no_wrap=True)
    for head in ("\nrequests", "\nfailed", "\ntokens/s", "\nrequests/s", "set-up\np50", "TTFT\np50", "ITL\np50"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("floor transfer\noffset p50", justify="right", no_wrap=True)
    for name, part in modes.items():
        names = ("setup_ms", "ttft_ms", "itl_ms", "floor_transfer_offset_ms")
        table.add_row(
            name,
            f"{part['requests']['handled']:,}",
            f"{part['requests']['failed']:,}",
            rate(part["tokens_per_second"]),
            rate(part["requests_per_second"]),
            *(quantile(part[metric]["quantiles"]["p50"], "ms") for metric in names),
        )
    return table


def _latency(found: Figures, console: Console) -> RenderableType:
    shown = {title: found[metric] for metric, title in TITLES.items()}
    shown |= {title: found[metric] for metric, title in FROM_START.items()}
    heard = found["floor_transfer_offset_ms"]
    heading = Text.assemble(
        ("Latency", "bold"),
        f" in ms from the user's last voiced sample · {heard['n']:,} answers heard in {heard['sessions']:,} sessions; "
        "set-up by itself: it is in no latency",
    )
    return Group(heading, latency_table(shown, console, first=len(TITLES)), *notes(heard))


# -------------------------------------------------------------------------------------------------------- turn-taking


def _turn_taking(found: Figures) -> RenderableType:
    told: list[tuple[str, str]] = []
    if taking := found["turn_taking"]:
        early = f", {number(taking['overlap_mean_ms'], 'ms')} ms on average" if taking["overlaps"] else ""
        told += [
            (
                "gaps, overlaps",
                f"{percent(taking['gap_percent'])} of {taking['n']:,} answers came after the user's last word, "
                f"{percent(taking['overlap_percent'])} before it ({taking['overlaps']:,}{early})",
            ),
            ("170-270 ms (S1)", _band("as heard", taking["heard"])),
            ("", _band("by arrival", taking["by_arrival"])),
            (
                "beside it",
                f"people leave about {taking['human_ms']:.0f} ms (Stivers et al. 2009); Full-Duplex-Bench v1.0 "
                f"published, by stream position and on another set than S1's and this one: "
                f"{_published(taking['published_ms'])}",
            ),
        ]
    told.append(("interruption", _interruption(found["interruption"])))
    if found["interruption"]:
        told.append(("", f"published response (the same source): {_published(found['interruption']['published_ms'])}"))
    if bench := found["full_duplex_bench"]:
        told += _full_duplex_bench(bench)
    return Group(Text("Turn-taking", style="bold"), Padding(grid(told), (0, 0, 0, 2)))


def _band(how: str, told: Figures) -> str:
    if not told["n"]:
        return f"{how}: unknown"
    lies = "lies within" if told["median_inside"] else "does NOT lie within"
    return (
        f"{how} the median, {number(told['median_ms'], 'ms')} ms, {lies}: {percent(told['inside_percent'])} of "
        f"{told['n']:,} turns inside, {percent(told['below_percent'])} below, {percent(told['above_percent'])} above"
    )


def _published(told: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f} ms" for name, value in told.items())


def _interruption(told: Figures | None) -> str:
    if told is None:
        return "none tried (--mode interruption, or scenario key barge_in_share)"
    stop, response = (told[name]["quantiles"] for name in ("stop_ms", "response_ms"))
    return (
        f"{told['n']:,} tried, the agent yielded to {percent(told['yielded_percent'])}; stopped after p50 "
        f"{milliseconds(stop['p50'])}, p95 {milliseconds(stop['p95'])}; {told['answered']:,} answered, after p50 "
        f"{milliseconds(response['p50'])}, p95 {milliseconds(response['p95'])}"
        + (f"; {told['too_short']:,} more answers were over before that" if told["too_short"] else "")
    )


def _full_duplex_bench(told: Figures) -> list[tuple[str, str]]:
    pauses, back = told["pauses"], told["backchannels"]
    latency = told["latency_ms"]["quantiles"]["p50"]
    paused = "no query has a pause"
    if pauses["turns"]:
        paused = f"floor taken in {percent(pauses['takeover_percent'])} of {pauses['turns']:,} queries with pauses"
    a_minute = NOTHING if back["per_minute"] is None else f"{back['per_minute']:.2f}"
    return [
        (
            "Full-Duplex-Bench",
            f"(arXiv 2503.04721, by audio alone) TOR {percent(told['takeover_percent'])} of {told['turns']:,} turns, "
            f"latency of those p50 {milliseconds(latency)}; {paused}; {back['n']:,} backchannels, {a_minute} a minute "
            "of the users' speech",
        )
    ]


# --------------------------------------------------------------------------------------------------- lag and playback


def _lag(found: Figures) -> RenderableType:
    lag, client = found["lag"], found["client"]
    growth = lag["growth_s_per_min"]
    middle = (lag[name]["quantiles"]["p50"] for name in ("p50_ms", "p99_ms", "max_ms"))
    p50, p99, most = (milliseconds(q) for q in middle)
    told = [
        (
            "seconds behind",
            f"in the middle one of {lag['sessions']:,} sessions p50 {p50}, p99 {p99}, at most {most}; at worst "
            f"{number(lag['max_ms']['greatest'], 'ms')} ms",
        ),
    ]
    if growth["worst"] is not None:
        where = f"{growth['worst_session']} on {growth['worst_host']}"
        median, worst = (f"{growth[key]:+z.2f}" for key in ("median", "worst"))
        told.append(("growth", f"median {median} s a minute, at worst {worst} ({where})"))
    if growth["over"]:
        told.append(
            (
                "",
                f"WARNING: over {growth['limit']:g} s a minute in {growth['over']:,} of {growth['sessions']:,} "
                "sessions: latency by arrival is that of how long they lasted",
            )
        )
    between = (lag[f"interarrival_{q}_ms"]["quantiles"]["p50"] for q in ("p50", "p99"))
    b50, b99 = (milliseconds(q) for q in between)
    told.append(("between messages", f"p50 {b50}, p99 {b99}, in the middle session"))
    if client:
        told.append(
            (
                "reference client",
                f"its buffer (80 ms) would run dry in {percent(client['stalled_percent'])} of sessions: "
                f"{client['stalls']:,} stalls, {client['stalled_s']:.1f} s of {client['received_s']:,.1f} s, "
                f"{client['dropped_s']:.1f} s thrown away to catch up",
            )
        )
    title = Text.assemble(("Lag", "bold"), " · seconds of audio sent - seconds received")
    return Group(title, Padding(grid(told), (0, 0, 0, 2)))


# -------------------------------------------------------------------------------------------------------- the servers


def _hosts(hosts: dict[str, Figures]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    table.add_column("\nserver", overflow="fold")
    for head in ("\nsessions", "\nrequests", "\nfailed", "set-up\np50", "TTFT\np50", "floor transfer\noffset p50"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("lag p99,\nmiddle session", justify="right", no_wrap=True)
    for name, told in hosts.items():
        metrics = ("setup_ms", "ttft_ms", "floor_transfer_offset_ms", "lag_p99_ms")
        table.add_row(
            Text(name),
            *(f"{told[count]:,}" for count in ("sessions", "requests", "failed")),
            *(quantile(told[metric]["quantiles"]["p50"], "ms") for metric in metrics),
        )
    return Group(Text.assemble(("Servers", "bold"), " · ms"), table)


def _server_log(told: Figures) -> RenderableType:
    lines = [
        (
            "connections",
            f"{told['connections']:,} in the log, {told['joined']:,} met a session ({told['sessions_without']:,} of "
            f"{told['sessions']:,} sessions met none); {told['served']:,} served, {told['unfinished']:,} unfinished"
            + (f", {told['swallowed']:,} closed without audio" if told["swallowed"] else ""),
        )
    ]
    if not told["joined"]:
        why = (
            "another run's log, a proxy in between that changes the ports, or a server that names no client (kyutai's)"
        )
        lines.append(("none met", f"{why}; to drop it, delete {', '.join(told['shards'])} in the run's folder"))
    for name in ("refused", "failed", "stray", "gave_up"):
        if counts := told[name]:
            shown = [f"{n:,} {reason}" for reason, n in list(counts.items())[:REASONS_SHOWN]]
            lines.append((_OF_LOG[name], ", ".join(shown)))
    if phases := told["phases"]:
        names = ("setup_ms", "lock_wait_ms", "prompt_ms", "client_setup_ms", "rest_ms")
        shown = [
            f"{_OF_LOG[name]} {milliseconds(phases[name]['quantiles']['p50'])}" for name in names if name in phases
        ]
        lines.append(("set-up (p50)", ", ".join(shown)))
    if step := told["step"]:
        p50, p99 = (milliseconds(step["step_ms"]["quantiles"][q]) for q in ("p50", "p99"))
        over = f"{percent(step['over_percent'])} of {step['n']:,} took longer than a frame lasts"
        lines.append(("a frame's step", f"p50 {p50}, p99 {p99}; {over} ({step['frame_ms']:.0f} ms)"))
    return Group(Text("What the server's log says", style="bold"), Padding(grid(lines), (0, 0, 0, 2)))


def _trace(told: Figures) -> RenderableType:
    return Text(
        f"{told['path']} has rows of {n_of(told['sessions'], 'full-duplex session')} and of "
        f"{n_of(told['answers'], 'answer')} in such, which are not joined: give --server-log the file that the server "
        "wrote by --duplex-log FILE."
    )


_OF_LOG = {
    "refused": "refused",
    "failed": "failed",
    "stray": "of no connection",
    "gave_up": "served in vain",
    "setup_ms": "server's set-up",
    "lock_wait_ms": "of it the lock",
    "prompt_ms": "and prompts",
    "client_setup_ms": "client's set-up",
    "rest_ms": "the rest",
}
