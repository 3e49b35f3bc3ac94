"""`python -m analysis.server_logs LOG`: S3's analyser. What a voice agent's log says of its LLM, TTS and ASR.

Needs no run. Reads lines (log_lines.py), knows whose they are (log_clients.py), and shows S3's table (components.py).
A log without such figures may be a full-duplex server's (personaplex_log.py): then its connections are shown.
"""

import argparse
import csv
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from analysis import components
from analysis.log_clients import Client, Survey, client_of, survey
from analysis.log_lines import Figure, LogReader
from analysis.personaplex_log import FRAME_S, ServerLog, read_log
from analysis.stats import turns_needed

EXAMPLES = """\
examples:
  python bot.py > bot_logs_test1.txt 2>&1
  docker compose logs -f python-app > bot_logs_test1.txt 2>&1
      how to capture a log; prefixes and colours do no harm
  python -m analysis.server_logs bot_logs_test1.txt
      averages a client and overall, P95 over calls, of what followed the last client's start:
      only then was the load complete, and earlier runs in the same file are left out
  python -m analysis.server_logs bot_logs_test1.txt --all
      of everything in the file
  python -m analysis.server_logs bot_logs_test1.txt --csv figures.csv
      each figure as a line, for a spreadsheet
  docker compose logs -t --no-color personaplex > personaplex_server.log 2>&1
  python -m analysis.server_logs personaplex_server.log
      a full-duplex server's (PersonaPlex, Moshi): its connections, and why some were refused; -t gives lines their time
  python -m analysis.report runs/latest --server-log bot_logs_test1.txt
      the same figures beside what the clients of a run heard, turn by turn

what the columns mean (ms):
  LLM TTFB   first byte of the language model's answer
  TTS TTFB   first byte of speech
  ASR Lat    compute latency of speech recognition
  LLM 1st    first complete sentence of the language model
  tokens/s   completion tokens / processing time of each LLM call
  Calls      figures counted of each service

P95 over calls is what one user in twenty waits. P95 of client averages hides it; it is shown because other analysers
print that one.

exit status: 0 a table was printed; 2 there was nothing to read.
"""
CLIENTS_SHOWN = 60
FALLBACK_WIDTH = 120
CSV_COLUMNS = ("client", "component", "metric", "seconds", "value", "instance", "log_time_unix_s")


class EmptyLog(ValueError):
    """A file with no figure in it. The text says what was there instead."""


@dataclass(slots=True)
class Analysis:
    """What is in a log. counted: figures taken; earlier: left out, from before the last client's start; unknown:
    figures whose client cannot be told, by reason (they count as clients of their own)."""

    survey: Survey
    reader: LogReader
    tally: components.Tally = field(default_factory=components.Tally)
    counted: int = 0
    earlier: int = 0
    unknown: dict[str, int] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a log; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        page = _analysed(options.log, options.all, options.csv)
    except EmptyLog as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or options.log}: {error.strerror or error}")
    width = options.width or _width()
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        console.print(page)
    text = "\n".join(line.rstrip() for line in captured.get().splitlines())
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding))
        if options.csv:
            print(f"Written: {options.csv}", flush=True)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _analysed(path: Path, everything: bool, csv_path: Path | None) -> Group:
    """The page of a log, whichever server's. Raises EmptyLog, OSError."""
    try:
        return _page(analyse(path, everything, csv_path), everything)
    except EmptyLog:
        if path.is_dir() or not (log := read_log(path)).connections:
            raise
    if csv_path is not None:
        _write_connections(log, csv_path)
    return _connections_page(log)


def analyse(path: Path, everything: bool = False, csv_path: Path | None = None) -> Analysis:
    """Read a log and count what follows its last client start, or everything. Raises EmptyLog, OSError."""
    if path.is_dir():
        raise EmptyLog(f"{path} is a directory: name the log in it")
    surveyed = survey(path)
    if not surveyed.size_bytes:
        raise EmptyLog(f"{path} is empty: was the server's output captured? {_HOW}")
    found = Analysis(surveyed, LogReader(path, surveyed.size_bytes))
    if not surveyed.owner and not surveyed.unknown:
        raise EmptyLog(_why_no_figure(surveyed))
    begin = 0 if everything else found.survey.last_start
    if csv_path is None:
        for _ in _counted(found, begin):
            pass
    else:
        with csv_path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(CSV_COLUMNS)
            for client, figure in _counted(found, begin):
                writer.writerow(
                    (client, figure.component, figure.metric, figure.value_s, figure.value, figure.instance, figure.at)
                )
    if not found.counted and not found.earlier:
        raise EmptyLog(_why_no_figure(surveyed))
    return found


_HOW = "`python bot.py > FILE 2>&1`, or `docker compose logs -f SERVICE > FILE 2>&1`"


def _why_no_figure(found: Survey) -> str:
    came = f"{len(found.clients):,} clients came, and it has" if found.clients else "has"
    return (
        f"{found.path} {came} no TTFB, latency or token figure in any line: is it the "
        "voice agent's own log, at level DEBUG, with pipecat's metrics on (enable_metrics=True)?"
    )


def _counted(found: Analysis, begin: int) -> Iterator[tuple[str, Figure]]:
    """Figures that count, with the name of their client; each goes into the tally."""
    processes = {client.process for client in found.survey.clients}
    for figure in found.reader.figures():
        if figure.offset < begin:
            found.earlier += 1
            continue
        owner = client_of(found.survey, figure)
        if owner is None:
            reason = found.survey.unknown.get((figure.process, figure.instance), "no client known")
            found.unknown[reason] = found.unknown.get(reason, 0) + 1
            client = figure.instance
        else:
            client = _label(owner, len(processes) > 1)
        found.counted += 1
        value = figure.value_s if figure.value_s is not None else figure.value
        found.tally.add(client, figure.component, figure.metric, value or 0.0)
        yield client, figure


def _label(owner: Client | str, several: bool) -> str:
    if isinstance(owner, str):
        return owner
    if owner.stream_id or not several:
        return owner.label
    return f"{owner.process.strip('/')} {owner.label}"


def _page(found: Analysis, everything: bool) -> Group:
    summary = found.tally.summary()
    begun = sum(not client.implied for client in found.survey.clients)
    head = [f"{found.reader.lines:,} lines", f"{begun:,} client starts", f"{found.counted:,} figures counted"]
    if found.reader.bad_lines:
        head.append(f"{found.reader.bad_lines:,} broken lines")
    told: list[RenderableType] = [
        Text.assemble(("Components", "bold"), f" · {found.survey.path} · ", ", ".join(head)),
        components.table(summary, CLIENTS_SHOWN),
        Text("ms, but for tokens/s. P95 over calls counts every call; P95 of client averages only each client's mean."),
    ]
    told += [Text(note) for note in components.notes(summary, CLIENTS_SHOWN)]
    if found.earlier:
        share = found.earlier / (found.earlier + found.counted)
        told.append(
            Text(
                f"{found.earlier:,} figures ({share:.0%}) came before the last client's start and are left out; --all "
                "counts them.",
                "yellow" if share > 0.5 else "",
            )
        )
    told += [
        Text(f"{n:,} figures stand under their instance: {reason}.", "yellow") for reason, n in found.unknown.items()
    ]
    if not found.counted:
        told.append(Text("Nothing follows the last client's start: it was not answered, or the log ends there."))
    return Group(*told)


# ------------------------------------------------------------------------------------------- a full-duplex server's log

DURATIONS = {
    "setup": "set-up: come to handshake sent",
    "lock_wait": "of it the wait for the server's lock",
    "prompt": "accepted to prompts done, the wait included",
    "session": "session: handshake sent to close",
}
OUTCOMES = {
    "served": "served",
    "swallowed": "gone before their handshake",
    "refused": "refused",
    "failed": "failed in session",
    "unfinished": "not told to the end",
}
NO_TIMES = "No line has a time: `docker compose logs -t` or `docker logs -t` gives them, and then phases are told."


def _connections_page(log: ServerLog) -> Group:
    """Connections by outcome, the exceptions, and what has a time."""
    came = Counter(connection.outcome for connection in log.connections)
    outcomes = ", ".join(f"{came[name]:,} {title}" for name, title in OUTCOMES.items() if came[name])
    lines = f"{log.lines:,} lines" + (f", {log.bad_lines:,} broken" if log.bad_lines else "")
    told: list[RenderableType] = [
        Text.assemble(("Connections", "bold"), f" · {log.path} · {lines}"),
        Text(f"{len(log.connections):,} connections: {outcomes}"),
    ]
    causes = Counter(connection.reason for connection in log.connections if connection.reason)
    told += [Text(f"  {n:,} x {reason}", "yellow") for reason, n in causes.most_common()]
    told += [Text(f"  {n:,} x {reason}, of no connection known", "yellow") for reason, n in log.stray.items()]
    timed: dict[str, list[float]] = {name: [] for name in DURATIONS}
    for connection in log.connections:
        for name, value_s in connection.durations_s.items():
            timed[name].append(value_s)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for title in ("s", "n", "p50", "p95", "greatest"):
        table.add_column(title, justify="left" if title == "s" else "right", no_wrap=True)
    for name, title in DURATIONS.items():
        if timed[name]:
            table.add_row(title, *_spread(timed[name], 1.0))
    told.append(table if table.row_count else Text(NO_TIMES))
    steps = np.concatenate([connection.steps_s for connection in log.connections])
    if steps.size:
        n, p50, p95, greatest = _spread(steps, 1000.0)
        over = float((steps > FRAME_S).mean())
        told.append(
            Text(
                f"Steps of the model: {n} frames, p50 {p50}, p95 {p95}, greatest {greatest} ms; {over:.1%} took longer "
                f"than the {FRAME_S * 1000:g} ms of their audio"
            )
        )
    return Group(*told)


def _spread(values: ArrayLike, scale: float) -> tuple[str, str, str, str]:
    """Count, p50, p95 and greatest; a p95 of fewer than turns_needed(0.95) is none."""
    array = np.asarray(values, dtype=np.float64) * scale
    p95 = f"{np.percentile(array, 95):,.2f}" if len(array) >= turns_needed(0.95) else f"n<{turns_needed(0.95)}"
    return f"{len(array):,}", f"{np.median(array):,.2f}", p95, f"{array.max():,.2f}"


def _write_connections(log: ServerLog, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for connection in log.connections:
            client = f"{connection.peer}:{connection.port}" if connection.peer else connection.instance
            figures = [*connection.durations_s.items(), *(("step", float(step)) for step in connection.steps_s)]
            for metric, value_s in figures:
                writer.writerow((client, "personaplex", metric, value_s, None, connection.instance, connection.came_at))


def _width() -> int:
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return FALLBACK_WIDTH
    return max(100, shutil.get_terminal_size((FALLBACK_WIDTH, 40)).columns)


def _fail(line: str) -> int:
    print(f"server_logs: {line}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.server_logs",
        description="Say how long a voice agent's LLM, TTS and ASR took, a client and overall, from the agent's log.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "log", type=Path, metavar="LOG", help="the server's log: NVIDIA's voice agents, pipecat, PersonaPlex, Moshi"
    )
    parser.add_argument("--all", action="store_true", help="count what came before the last client's start, too")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write each counted figure into this file")
    parser.add_argument("--width", type=int, metavar="N", help="columns of the page (default: the terminal's, or 120)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
