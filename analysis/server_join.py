"""Put the server's own rows beside the client's: requests by their id, here; turns of conversations in turn_join.py.

Durations are compared, so clocks need not agree. Only where client and server share a host, and so a monotonic clock,
are instants of the two subtracted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.counting import CONVERSATIONS, Counted
from analysis.log_import import import_log
from analysis.runs import Run
from analysis.server_sources import ForeignTrace, Source, SourceWriter, sources, streams
from analysis.traced_gpus import import_gpus
from gpu_server.trace import TraceHeader, read_agent_turns, read_duplex, read_trace

CLOCKS_AGREE_S = 0.001  # an answer cannot come before its request: more than this, and the clocks are not one
_SNIFFED_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Joined:
    """Client turns and server rows that met. `rows`: measured successes with a server row, client columns and, with
    the prefix `server_`, the server's; where both share a clock also `before_server_s` (intended start to received)
    and `after_server_s` (first audio handed over to first chunk); always `rest_s` (ttfc_s - server_ttfb_s).
    """

    sources: tuple[Source, ...]
    rows: pd.DataFrame
    joined: int  # turns of any phase and outcome that have a server row
    only_client: int  # turns sent that have none
    only_server: int  # server rows of this run that belong to no turn
    repeated: int  # server rows whose request id came before
    one_clock: bool


def import_server_log(run: Run, path: Path) -> Source:
    """Take this run's rows out of a trace or of a voice agent's log, told apart by what is in it.

    Raises ForeignTrace for what is neither, OSError where it cannot be read.
    """
    if path.is_dir():
        raise ForeignTrace(f"{path} is a directory: name the log in it")
    with path.open("rb") as file:
        begins = file.read(_SNIFFED_BYTES)
    if not begins.strip():
        raise ForeignTrace(f"{path} is empty: was the server's output captured?")
    ours = (b'{"cicada_trace"', b'{"request_id"', b'{"stream_id"', b'{"gpu"')
    if any(line.startswith(ours) for line in begins.splitlines()):
        return import_trace(run, path)
    return import_log(run, path)


def import_trace(run: Run, path: Path) -> Source:
    """Take this run's rows out of a trace (see gpu_server/trace.py) into the run's `server/`.

    A row is this run's if its request id begins with the run's id, or is one of its turns'; a turn of a call, if its
    stream is one of the run's; a sample of a GPU, by its time (traced_gpus.py). Raises ForeignTrace for a file without
    a single row or header, OSError where it cannot be read.
    """
    if path.is_dir():
        raise ForeignTrace(f"{path} is a directory: name the trace file in it")
    header, rows, bad_lines = read_trace(path)
    spoken = read_agent_turns(path)
    sessions, answers = read_duplex(path)
    if header is None and not rows and not spoken and not sessions and not answers:
        raise ForeignTrace(f"{path} is not a trace: make one with `python -m gpu_server --trace FILE`")
    known, opened = set(run.turns["request_id"].dropna()), streams(run)
    taken = [row for row in rows if (name := row["request_id"]) and (name in known or name.startswith(f"{run.id}."))]
    turns = [turn for turn in spoken if turn["stream_id"] in opened]
    host = header["host"] if header else None
    source = Source(
        path=str(path),
        host=host,
        rows=len(taken) + len(turns),
        other_runs=len(rows) - len(taken) + len(spoken) - len(turns),
        bad_lines=bad_lines,
        offset_s=_apart(run, header),
        full_duplex={"sessions": len(sessions), "answers": len(answers)} if sessions or answers else {},
        gpu_samples=import_gpus(run, path),
    )
    with SourceWriter(run, path) as writer:
        writer.write({"component": "tts", **row} for row in taken)
        shift = header["wall_at"] - header["monotonic_at"] if header else 0.0
        for turn in turns:
            writer.write(_rows_of(turn, shift))
        writer.finish(source)
    return source


def _apart(run: Run, header: TraceHeader | None) -> float:
    """Server's wall clock - clients'. On one host it is one clock, and what their anchors differ by is a step of it."""
    if header is None:
        return 0.0
    for log in run.sealed.logs.values():
        wall, monotonic = log.facts.get("wall_at"), log.facts.get("monotonic_at")
        if log.facts.get("host") == header["host"] and isinstance(wall, float) and isinstance(monotonic, float):
            return (header["wall_at"] - header["monotonic_at"]) - (wall - monotonic)
    return 0.0


# A figure of a turn of the bundled agent: component, metric, the column it stands in, and the instant it was known at.
_DURATIONS = (
    ("asr", "compute_latency", "asr_s", "transcript_at"),
    ("llm", "ttfb", "llm_ttfb_s", "first_token_at"),
    ("llm", "first_sentence", "llm_first_sentence_s", "first_sentence_at"),
    ("llm", "processing", "processing_s", "first_sentence_at"),
    ("tts", "ttfb", "tts_ttfb_s", "tts_first_audio_at"),
)
# Instants of the server's monotonic clock: rows of component `agent`, the instant in `value`.
INSTANTS = (
    *("user_last_voiced_received_at", "end_of_speech_at", "transcript_at", "first_token_at", "first_sentence_at"),
    *("tts_first_audio_at", "first_audio_at", "last_audio_at"),
)


def _rows_of(turn: Any, shift: float) -> Iterator[dict[str, Any]]:
    """A turn of the bundled agent as rows of one figure each; `instance` names the turn: agent_turn#3."""
    fixed = {
        "stream_id": turn["stream_id"],
        "instance": f"agent_turn#{turn['agent_turn']}",
        "outcome": turn["outcome"],
        "fault": turn["fault"],
    }

    def row(component: str, metric: str, at: float | None, **figure: float | None) -> dict[str, Any]:
        instant = at if at is not None else turn["finished_at"]
        return {**fixed, "component": component, "metric": metric, "at": instant + shift, **figure}

    for component, metric, column, at in _DURATIONS:
        if turn[column] is not None:
            yield row(component, metric, turn[at], value_s=turn[column])
    if turn["tokens"]:
        yield row("llm", "completion_tokens", turn["first_sentence_at"], value=float(turn["tokens"]))
        if turn["processing_s"]:
            rate = turn["tokens"] / turn["processing_s"]
            yield row("llm", "tokens_per_s", turn["first_sentence_at"], value=rate)
    for name in INSTANTS:
        if turn[name] is not None:
            yield row("agent", name, turn[name], value=turn[name])


def join(run: Run, counted: Counted) -> Joined | None:
    """The run's requests beside its server rows; None if no trace was ever imported, or there were no requests."""
    imported = tuple(source for source in sources(run) if source.kind == "trace")
    turns = run.turns[~run.turns["protocol"].isin(CONVERSATIONS)]
    if not imported or turns.empty:
        return None
    server = run.server[run.server["request_id"].notna()]
    first = server.drop_duplicates("request_id")
    has_row = turns["request_id"].isin(first["request_id"])
    wanted = ["request_id", "received_at", "first_audio_at", "queue_wait_s", "ttfb_s", "audio_s"]
    rows = counted.answered.merge(
        first[wanted].rename(columns={name: f"server_{name}" for name in wanted[1:]}), on="request_id", how="inner"
    )
    rows["rest_s"] = rows["ttfc_s"] - rows["server_ttfb_s"]
    hosts = {log.facts.get("host") for log in run.sealed.logs.values()} | {source.host for source in imported}
    one_clock = len(hosts) == 1 and None not in hosts and _instants(rows)
    return Joined(
        sources=imported,
        rows=rows,
        joined=int(has_row.sum()),
        only_client=int((~has_row & turns["sent_at"].notna()).sum()),
        only_server=int((~first["request_id"].isin(turns["request_id"])).sum()),
        repeated=len(server) - len(first),
        one_clock=one_clock,
    )


def _instants(rows: pd.DataFrame) -> bool:
    """Subtract instants of client and server; False, and no columns, where the order says the clocks are two."""
    before = rows["server_received_at"] - rows["intended_at"]
    after = rows["first_chunk_at"] - rows["server_first_audio_at"]
    # An arrival may be told early by its interval's width, so a few may seem to come before they were sent.
    if max((before < -CLOCKS_AGREE_S).mean(), (after < -CLOCKS_AGREE_S).mean()) > 0.01:
        return False
    rows["before_server_s"], rows["after_server_s"] = before, after
    return True
