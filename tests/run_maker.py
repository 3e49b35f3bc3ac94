"""Make run directories whose truth is known: real logs, row by row, as workers write them. Judges nothing.

`python tests/run_maker.py DIR --turns 1000000 --workers 8` makes a large one, to time the report with.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack

from workers.samples import schema

RUN = "20261120-101500-demo"
WALL_AT = 1_795_000_000.0  # the wall clock when every maker's worker starts, unix seconds
MONOTONIC_AT = 5_000.0
MASTER_BOOT = "boot-a"

Row = dict[str, Any]


def turn(**given: Any) -> Row:
    """A turn row: a success with plausible figures, but for what is given.

    Given durations make instants: `late_s` (sent - intended), `ttfc_s`, `ttfa_s`, `e2e_s` from the intended start.
    """
    late_s = given.pop("late_s", 0.000_2)
    row: Row = {
        "run": RUN,
        "worker": "w0",
        "session": "s0",
        "turn": 0,
        "protocol": "http_tts",
        "dialect": "openai",
        "scenario": "demo",
        "text_name": "short",
        "text_chars": 67,
        "voice": "alloy",
        "phase": "measured",
        "clock": "kernel",
        "outcome": "answered",
        "status": 200,
        "intended_at": MONOTONIC_AT + 10.0,
        "ttfc_s": 0.100,
        "audio_s": 2.0,
        "sample_rate": 24_000,
        "flagged": False,
        "connection_new": False,
        "first_chunk_width_s": 0.000_1,
        "first_audio_width_s": 0.000_1,
        "chunks": 10,
        "largest_gap_s": 0.02,
        "min_prebuffer_s": 0.0,
        **given,
    }
    row.setdefault("request_id", f"{row['run']}.{row['worker']}.{row['session']}.{row['turn']}")
    start = row["intended_at"]
    row.setdefault("sent_at", start + late_s)
    row.setdefault("ready_at", start)
    if row["outcome"] != "answered":
        row.setdefault("ended_at", start + 0.5)
        for figure in ("ttfc_s", "audio_s", "min_prebuffer_s", "largest_gap_s"):
            if figure not in given:
                row[figure] = None
        return row
    row.setdefault("ttfa_s", row["ttfc_s"] + 0.020)
    row.setdefault("e2e_s", row["ttfc_s"] + 0.300)
    row.setdefault("first_chunk_at", start + row["ttfc_s"])
    row.setdefault("first_audio_at", start + row["ttfa_s"])
    row.setdefault("last_chunk_at", start + row["e2e_s"])
    row.setdefault("ended_at", row["last_chunk_at"])
    row.setdefault("audio_bytes", int(row["audio_s"] * row["sample_rate"] * 2))
    row.setdefault("wire_bytes", row["audio_bytes"] + 300)
    row.setdefault("rtf", (row["last_chunk_at"] - row["sent_at"]) / row["audio_s"] if row["audio_s"] else None)
    for prebuffer in schema.PREBUFFERS_MS:
        stalls = row["min_prebuffer_s"] * 1000 > prebuffer
        row.setdefault(f"stall_count_{prebuffer}ms", int(stalls))
        row.setdefault(f"stall_s_{prebuffer}ms", max(0.0, row["min_prebuffer_s"] - prebuffer / 1000))
        row.setdefault(f"stall_longest_s_{prebuffer}ms", max(0.0, row["min_prebuffer_s"] - prebuffer / 1000))
    return row


def spoken(**given: Any) -> Row:
    """A turn of a conversation: an answer 0.8 s after the user's words, heard without a stall, but for what is given.

    The user begins 0.1 s after `intended_at` and speaks for `query_s` (2 s). `floor_s`: floor transfer offset, at
    playout; the audio with the onset arrives `playout_s` (5 ms) before it is heard. A negative `floor_s` is an overlap.
    """
    query_s, floor_s, playout_s = given.pop("query_s", 2.0), given.pop("floor_s", 0.8), given.pop("playout_s", 0.005)
    start = given.setdefault("intended_at", MONOTONIC_AT + 10.0)
    onset, offset = start + 0.1, start + 0.1 + query_s
    fixed: Row = {
        "run": RUN,
        "worker": "w0",
        "session": "s0",
        "turn": 0,
        "protocol": "voice_agent",
        "dialect": "pipecat",
        "scenario": "demo",
        "text_name": "order",
        "phase": "measured",
        "clock": "kernel",
        "outcome": "early" if floor_s < 0 else "answered",
        "sent_at": start,
        "ready_at": start - 1.0,
        "user_onset_at": onset,
        "user_offset_at": offset,
        "user_sent_at": offset + 0.010,
        "send_late_max_s": 0.000_5,
        "flagged": False,
        "connection_new": False,
        "barge_in": False,
        "false_barge_ins": 0,
        "stale_s": 0.0,
        "stream_id": f"stream-{given.get('worker', 'w0')}-{given.get('session', 's0')}",
    }
    if given.get("outcome", "answered") in schema.ANSWERS:
        heard = offset + floor_s
        fixed |= {
            "ttfc_s": floor_s - playout_s - 0.015,
            "ttfa_s": floor_s,
            "e2e_s": floor_s + 1.5,
            "first_chunk_at": heard - playout_s - 0.015,
            "first_audio_at": heard,
            "last_chunk_at": heard + 1.5,
            "agent_onset_at": heard,
            "agent_onset_arrival_at": heard - playout_s,
            "agent_offset_at": heard + 2.0,
            "agent_onset_width_s": 0.000_1,
            "onset_by": "ear",
            "agent_speech_s": 2.0,
            "overlap_s": max(0.0, -floor_s),
            "floor_transfer_offset_s": floor_s,
            "utterances": 1,
            "audio_s": 2.0,
            "sample_rate": 24_000,
            "chunks": 50,
            "min_prebuffer_s": 0.0,
            "ended_at": heard + 2.5,
        }
        stall_s = given.get("min_prebuffer_s", 0.0)
        for prebuffer in schema.PREBUFFERS_MS:
            left_s = max(0.0, stall_s - prebuffer / 1000)
            fixed[f"stall_count_{prebuffer}ms"] = int(left_s > 0)
            fixed[f"stall_s_{prebuffer}ms"] = fixed[f"stall_longest_s_{prebuffer}ms"] = left_s
    else:
        fixed["ended_at"] = offset + 10.0
    row = {**fixed, **given}
    row.setdefault("request_id", f"{row['run']}.{row['worker']}.{row['session']}.{row['turn']}")
    return row


def calls(sessions: int, each: int, apart_s: float = 8.0, **given: Any) -> list[Row]:
    """Conversations of `each` turns, `apart_s` apart, calls 0.3 s apart; a given value may be a function of the
    ordinal of the turn (0, 1, ... through the first call, then the second)."""
    made = []
    for at in range(sessions * each):
        session, number = divmod(at, each)
        fixed = {name: value(at) if callable(value) else value for name, value in given.items()}
        fixed.setdefault("intended_at", MONOTONIC_AT + 10.0 + 0.3 * session + apart_s * number)
        made.append(spoken(session=f"s{session}", turn=number, **fixed))
    return made


def duplex(**given: Any) -> Row:
    """A turn of a full-duplex session: as `spoken`, with 11 text pieces (the first 0.15 s after the user's words, then
    one each 80 ms), heard 0.08 s later than its stream position says, of which 0.06 s are lag; but for what is given.

    `floor_s` (0.22 s) is as heard; `stream_s`, `lag_s`: by stream position, and the lag when the answer came.
    `speech_s` (2 s): what the agent said.
    """
    floor_s, speech_s = given.pop("floor_s", 0.22), given.pop("speech_s", 2.0)
    stream_s, tokens, ttft_s = given.pop("stream_s", floor_s - 0.08), given.get("tokens", 11), 0.15
    fixed: Row = {
        "protocol": "personaplex",
        "dialect": "personaplex",
        "host": "127.0.0.1:8998",
        "decoded": True,
        "voice": "NATF0.pt",
        "user_pauses": 0,
        "lag_s": 0.06,
    }
    row = spoken(floor_s=floor_s, **{**fixed, **given})
    if row["text_name"] == "connect":  # nobody spoke
        return {**row, **dict.fromkeys(("user_onset_at", "user_offset_at", "user_sent_at", "sent_at", "ready_at"))}
    offset = row["user_offset_at"]
    if row["outcome"] not in schema.ANSWERS:
        return row
    told: Row = {
        "tokens": tokens,
        "ttft_s": ttft_s if tokens else None,
        "itl_s": 0.08 if tokens > 1 else None,
        "first_token_at": offset + ttft_s if tokens else None,
        "last_token_at": offset + ttft_s + 0.08 * (tokens - 1) if tokens else None,
        "backchannels": 0,
        "agent_offset_at": offset + floor_s + speech_s,
        "agent_speech_s": speech_s,
        "e2e_s": floor_s + speech_s,
        "tokens_per_s": tokens / (floor_s + speech_s) if tokens else None,
        "stream_transfer_offset_s": stream_s,
        "takeover": speech_s >= 1.0,
    }
    return {**row, **told, **given}


def trials(count: int, mode: str | None = "turn_taking", apart_s: float = 6.0, **given: Any) -> list[Row]:
    """`count` iterations of a mode, each a session of one turn, `apart_s` apart; a given value may be a function of the
    ordinal. Without a mode iterations have no numbers."""
    made = []
    for at in range(count):
        fixed = {name: value(at) if callable(value) else value for name, value in given.items()}
        fixed.setdefault("intended_at", MONOTONIC_AT + 10.0 + apart_s * at)
        fixed.setdefault("session", f"{mode or 'd'}{at}")
        made.append(duplex(mode=mode, iteration=at if mode else None, **fixed))
    return made


# What the made agent's log says of a turn: (after the user's offset, service, what, seconds).
STAGES: tuple[tuple[float, str, str, str], ...] = (
    (0.300, "NemotronASRService", "ASR compute latency", "0.1"),
    (0.301, "NemotronASRService", "TTFB", "0.3s"),
    (0.450, "NvidiaLLMService", "TTFB", "0.15s"),
    (0.500, "NvidiaLLMService", "prompt tokens", "96, completion tokens: 20"),
    (0.500, "NvidiaLLMService", "processing time", "0.2s"),
    (0.500, "NvidiaLLMService", "LLM first sentence generation time", "0.2"),
    (0.700, "NemotronTTSService", "TTFB", "0.2s"),
)


def agent_log(
    rows: Iterable[Row],
    *,
    named: bool = True,
    apart_s: float = 0.0,
    greeting: bool = True,
    connections: bool = True,
    prefix: str = "",
) -> str:
    """The log of the agent that answered these turns: 0.3 s from the user's words to the transcript (0.1 s of it
    recognition), 0.15 s to the first token, 0.05 s on to the first sentence, 0.2 s of synthesis.

    named: lines have the stream id; else instances only, as in stock pipecat. apart_s: what the server's clock is ahead
    of the clients'. greeting: each call begins with one, told of 1.7 s before its first turn is due.
    """
    told: list[tuple[float, str]] = []
    ordinals: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row["intended_at"]):
        stream = row["stream_id"]
        label = f"| streamId={stream} - " if named else "- "
        if stream not in ordinals:
            ordinals[stream] = len(ordinals)
            up = row["intended_at"] - 1.9
            if connections:
                words = f"Accepted WebSocket connection for stream ID {stream}" if named else "Client"
                told.append((up, f'INFO:     127.0.0.1:1 - "WebSocket /ws{f"/{stream}" if named else ""}" [accepted]'))
                told.append((up, f"| INFO     | __main__:serve:1 {'| streamId=n/a ' if named else ''}- {words}"))
            if greeting:
                told.append((up + 0.2, f"| DEBUG    | m:f:1 {label}NvidiaLLMService#{ordinals[stream]} TTFB: 0.9s"))
        if row["outcome"] not in schema.ANSWERS:
            continue
        for after, service, what, value in STAGES:
            words = f"| DEBUG    | m:f:1 {label}{service}#{ordinals[stream]} {what}: {value}"
            told.append((row["user_offset_at"] + after, words))
    lines = []
    for at, words in sorted(told, key=lambda line: line[0]):
        wall = datetime.fromtimestamp(at - MONOTONIC_AT + WALL_AT + apart_s, UTC)
        stamp = "" if words.startswith("INFO") else wall.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " "
        lines.append(f"{prefix}{stamp}{words}\n")
    return "".join(lines)


def turns(count: int, sessions: int = 20, **given: Any) -> list[Row]:
    """`count` successes, 0.1 s apart, spread over `sessions`; a given value may be a function of the ordinal."""
    made = []
    for at in range(count):
        fixed = {name: value(at) if callable(value) else value for name, value in given.items()}
        fixed.setdefault("intended_at", MONOTONIC_AT + 10.0 + 0.1 * at)
        fixed.setdefault("session", f"s{at % sessions}")
        fixed.setdefault("turn", at // sessions)
        made.append(turn(**fixed))
    return made


def second(at: float, **given: Any) -> Row:
    """One second of a worker's health: a calm one, but for what is given."""
    return {
        "run": RUN,
        "worker": "w0",
        "at": at,
        "interval_s": 1.0,
        "cpu_share": 0.20,
        "rss_bytes": 120_000_000,
        "loop_lag_p50_s": 0.000_1,
        "loop_lag_max_s": 0.000_8,
        "gc_count": 0,
        "gc_s": 0.0,
        "send_late_max_s": 0.000_4,
        "starts": 10,
        "dropped_starts": 0,
        "in_flight": 4,
        "users": 20,
        "rows": 100,
        "listener_errors": 0,
        "sends": 1_000,
        "send_late_p50_s": 0.000_1,
        "send_late_p99_s": 0.000_8,
        **given,
    }


def start_of(row: Row) -> Row:
    """The turn_start that preceded a turn."""
    return {name: row.get(name) for name in schema.names("turn_starts")}


def facts(worker: str = "w0", **given: Any) -> Row:
    """What a worker says of itself in its log's header and in the manifest."""
    return {
        "run": RUN,
        "worker": worker,
        "index": int(worker.lstrip("w") or 0),
        "host": "box-a",
        "boot_id": MASTER_BOOT,
        "pid": 4242,
        "spool": f"spool/{worker}.msgpack",
        "wall_at": WALL_AT,
        "monotonic_at": MONOTONIC_AT,
        **given,
    }


def packed(table: str, row: Mapping[str, Any]) -> bytes:
    """A row as a log holds it."""
    values = [row.get(name) for name in schema.names(table)]
    while values and values[-1] is None:
        values.pop()
    unknown = set(row) - set(schema.names(table))
    assert not unknown, f"{table} has no {unknown}"
    return bytes(msgpack.packb([table, *values]))


def packed_header(worker: Mapping[str, Any], version: int = schema.SCHEMA_VERSION) -> bytes:
    """The first value of a log."""
    tables = {table: schema.names(table) for table in schema.TABLES}
    return bytes(msgpack.packb({"cicada": version, "tables": tables, "worker": dict(worker)}))


def log_of(
    turns: Iterable[Row],
    seconds: Iterable[Row] = (),
    worker: Mapping[str, Any] | None = None,
    unended: Iterable[Row] = (),
    greeting_s: float | None = None,
    *,
    of_session: Callable[[int], Row] = lambda at: {},
) -> bytes:
    """A whole log: each turn's start and end, a row a session, a row a second, and starts without an end.

    A call is ready 1.9 s before its first turn is due, and may have a greeting. of_session: what else there is to say
    of a full-duplex session, by its ordinal.
    """
    out = [packed_header(worker or facts())]
    sessions: dict[str, Row] = {}
    for row in turns:
        out += [packed("turn_starts", start_of(row)), packed("turns", row)]
        session = sessions.setdefault(
            row["session"],
            {
                **{name: row[name] for name in ("run", "worker", "session", "protocol", "dialect", "scenario")},
                "stream_id": row.get("stream_id"),
                "started_at": row["intended_at"] - (2.0 if row.get("stream_id") else 0.0),
                "ready_at": row["intended_at"] - (1.9 if row.get("stream_id") else 0.0),
                "greeting_s": greeting_s if row.get("stream_id") else None,
                "turns": 0,
                "connections": 1,
            },
        )
        if row["protocol"] == "personaplex" and not session["turns"]:
            session |= duplex_session(row, session["started_at"]) | of_session(len(sessions) - 1)
        session["ended_at"] = row["ended_at"]
        session["turns"] += 1
    out += [packed("turn_starts", start_of(row)) for row in unended]
    out += [packed("sessions", row) for row in sessions.values()]
    out += [packed("workers", row) for row in seconds]
    return b"".join(out)


def duplex_session(row: Row, started_at: float) -> Row:
    """What is said of the full-duplex session that begins with this turn: up 1.4 s after it was asked for (not where
    that failed), its first text 0.5 s and its first sound 0.1 s later, 60 ms of lag that does not grow."""
    if row["text_name"] == "connect":
        return {name: row.get(name) for name in ("host", "mode", "decoded")} | {"ready_at": None}
    ready_at = started_at + 1.4
    return {
        **{name: row.get(name) for name in ("host", "mode", "decoded", "voice")},
        "ready_at": ready_at,
        "setup_s": 1.4,
        "first_token_at": ready_at + 0.5,
        "first_audio_at": ready_at + 0.1,
        "sent_s": 12.0,
        "received_s": 11.9,
        "unknown_messages": 0,
        "lag_p50_s": 0.06,
        "lag_p99_s": 0.09,
        "lag_max_s": 0.1,
        "lag_growth_s_per_min": 0.0,
        "interarrival_p50_s": 0.08,
        "interarrival_p99_s": 0.082,
        "client_stalls": 0,
        "client_stalled_s": 0.0,
        "client_dropped_s": 0.0,
    }


def manifest(**given: Any) -> Row:
    """A finished run's manifest, but for what is given."""
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "run": RUN,
        "state": "finished",
        "name": "demo",
        "started_wall_at": WALL_AT + 5.0,
        "ended_wall_at": WALL_AT + 80.0,
        "host": "http://localhost:8080",
        "scenario": {
            "dialect": "openai",
            "arrivals": "closed",
            "warm_up_s": 5.0,
            "think_s": 0.5,
            "rate": None,
            "timeout_s": 30.0,
        },
        "command": ["locust", "--headless", "--users", "20"],
        "versions": {"cicada": "0.1.0", "python": "3.11.9", "locust": "2.47.0"},
        "machine": {"cpus": 8, "system": "Linux"},
        "git": "abc1234",
        "users": 20,
        "exit_reason": "run time reached",
        "workers": {},
        "listener_errors": 0,
        **given,
    }


def make_run(
    parent: Path, logs: Mapping[str, bytes] | bytes, workers: Mapping[str, Row] | None = None, **given: Any
) -> Path:
    """Write a run directory as the master leaves it. `workers` changes what the manifest says of a worker."""
    if isinstance(logs, bytes):
        logs = {"w0": logs}
    run = parent / RUN
    (run / "log").mkdir(parents=True, exist_ok=True)
    entries: dict[str, Row] = {}
    for worker, log in logs.items():
        (run / "log" / f"{worker}.msgpack").write_bytes(log)
        entries[worker] = {
            **{k: v for k, v in facts(worker).items() if k not in ("run", "worker")},
            "log_bytes": len(log),
            "final_bytes": len(log),
            "rows": None,
            "drained": True,
            "recovered": False,
            "lost_bytes": None,
            **(workers or {}).get(worker, {}),
        }
    given.setdefault("workers", entries)
    (run / "run.json").write_text(json.dumps(manifest(**given), indent=1))
    return run


def clean_seconds(count: int = 30) -> list[Row]:
    """A calm worker's health, from the first turn of `turns` on."""
    return [second(MONOTONIC_AT + 11.0 + at) for at in range(count)]


def make_large(parent: Path, count: int, workers: int, seed: int = 1) -> Path:
    """A large run with five texts, some failures, cut turns and a warm-up; ten turns a session."""
    draw = random.Random(seed)
    texts = {"ultra_short": 12, "short": 67, "medium": 148, "long": 270, "telephony_typical": 200}
    run = parent / RUN
    (run / "log").mkdir(parents=True)
    entries: dict[str, Row] = {}
    for index in range(workers):
        worker = f"w{index}"
        path = run / "log" / f"{worker}.msgpack"
        with path.open("wb") as file:
            file.write(packed_header(facts(worker)))
            for at in range(count // workers):
                text, chars = draw.choice(list(texts.items()))
                ttfc = draw.lognormvariate(-2, 0.4)
                fails = draw.random() < 0.003
                made = turn(
                    worker=worker,
                    session=f"{worker}-{at // 10}",
                    turn=at % 10,
                    text_name=text,
                    text_chars=chars,
                    intended_at=MONOTONIC_AT + 10 + at * 0.02,
                    phase="warm_up" if at * 0.02 < 30 else "measured",
                    ttfc_s=ttfc,
                    e2e_s=ttfc + chars / 200,
                    audio_s=chars / 15,
                    min_prebuffer_s=max(0.0, draw.gauss(-0.02, 0.03)),
                    **({"outcome": "timed_out", "error_kind": "timeout", "error": "no byte in 30 s"} if fails else {}),
                )
                file.write(packed("turn_starts", start_of(made)))
                file.write(packed("turns", made))
                if at % 50 == 0:
                    file.write(packed("workers", second(made["intended_at"], worker=worker)))
        entries[worker] = {
            **{k: v for k, v in facts(worker).items() if k not in ("run", "worker")},
            "log_bytes": path.stat().st_size,
            "final_bytes": path.stat().st_size,
            "rows": None,
            "drained": True,
            "recovered": False,
            "lost_bytes": None,
        }
    (run / "run.json").write_text(json.dumps(manifest(workers=entries), indent=1))
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=8)
    arguments = parser.parse_args()
    print(make_large(arguments.directory, arguments.turns, arguments.workers))
