"""A full-duplex server's log: a real one against counts by hand, made ones whose truth is known, and beside a run."""

import csv
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_maker import MONOTONIC_AT, RUN, WALL_AT, facts, make_run, packed, packed_header, spoken, start_of

from analysis import duplex_join
from analysis.log_lines import LONGEST_LINE_BYTES
from analysis.personaplex_log import NOT_TOLD, Connection, ServerLog, read_log
from analysis.report import main as report_main
from analysis.runs import Run, open_run, read_table
from analysis.server_join import import_server_log
from analysis.server_logs import main
from analysis.server_sources import ForeignTrace, sources
from gpu_server.trace import DuplexAnswer, DuplexSession, TraceLog

SAMPLE = Path(__file__).parent / "logs" / "personaplex_server.log"
DAY_AT = 1_795_132_800.0  # 2026-11-20 00:00 UTC


def read(tmp_path: Path, text: str | bytes) -> ServerLog:
    path = tmp_path / "server.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_log(path)


def said(its: str, text: str) -> str:
    """A line of PersonaPlex's own log, in its colours."""
    return f"\x1b[97m[{its}] \x1b[0m\x1b[97m{text}\x1b[0m\n"


def info(text: str) -> str:
    """A line of kyutai's server."""
    return f"\x1b[1;34m[Info]\x1b[0m {text}\n"


def came(its: str, port: int, ip: str = "127.0.0.1") -> str:
    return said(its, f"Incoming connection from {ip}:{port}")


def phases(its: str, *names: str) -> str:
    return "".join(said(its, name) for name in names)


PROMPTED = ("accepted connection", "text prompt: Be kind.", "voice prompt: a.pt (requested: a.pt)")
SHAKEN = ("done with system prompts", "sent handshake bytes")
CLOSED = ("connection closed", "session closed", "done with connection")
TRACEBACK = """\
Error handling request
Traceback (most recent call last):
  File "server.py", line 283, in handle_chat
    await self.step()
          ~~~~~~~~~^^
RuntimeError: out of memory
"""


def served(its: str, port: int, ip: str = "127.0.0.1") -> str:
    return came(its, port, ip) + phases(its, *PROMPTED, *SHAKEN, *CLOSED)


def outcomes(log: ServerLog) -> list[tuple[str | None, str, str | None]]:
    return [(connection.id, connection.outcome, connection.reason) for connection in log.connections]


# --------------------------------------------------------------------------------------------- a real log, by hand


def test_the_real_log_says_what_one_counts_by_hand() -> None:
    log = read_log(SAMPLE)
    assert [(c.id, c.peer, c.port, c.outcome) for c in log.connections] == [
        ("2P8H", "127.0.0.1", 55272, "served"),
        ("F3OK", "127.0.0.1", 54108, "served"),
        ("UKOL", "127.0.0.1", 54110, "served"),
        ("40EN", "127.0.0.1", 46520, "refused"),
        ("JLST", "127.0.0.1", 46524, "refused"),
        ("JOWW", "127.0.0.1", 36850, "refused"),
        ("KM8U", "127.0.0.1", 36854, "refused"),
        ("1QRT", "127.0.0.1", 36862, "refused"),
    ]
    assert [connection.reason for connection in log.connections[3:]] == [
        "KeyError: 'seed'",
        "KeyError: 'voice_prompt'",
        "FileNotFoundError: Requested voice prompt 'NOPE.pt' not found in '/models/voices'",
        'ValueError: "/models/voices/": unsupported feature: core (probe): no suitable format reader found',
        NOT_TOLD,
    ]
    assert [connection.loaded for connection in log.connections] == [3, 3, 3, 0, 0, 0, 0, 1]
    assert list(log.connections[0].phases) == [
        *("incoming", "accepted", "prompts", "prompts_done", "handshake_sent"),
        *("connection_closed", "session_closed", "done"),
    ]
    assert list(log.connections[7].phases) == ["incoming", "accepted", "prompts"]
    assert all(at is None for connection in log.connections for at in connection.phases.values())
    first = log.connections[0]
    assert (first.voice_prompt or "").startswith("/models/voices/NATF0.pt")
    assert first.text_prompt is not None
    # "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
    assert (first.text_prompt.characters, first.text_prompt.begins) == (100, "You are a wise and friendly teacher. Ans")
    assert log.connections[7].text_prompt is None
    assert (log.lines, log.bad_lines, log.stray) == (119, 0, {})


def bare(connection: Connection) -> Connection:
    return replace(connection, process="")


@pytest.mark.parametrize("dress", ["escapes lost", "no colour", "windows", "compose", "coloured compose"])
def test_however_it_was_captured_it_says_the_same(tmp_path: Path, dress: str) -> None:
    text = SAMPLE.read_text()
    if dress == "escapes lost":
        text = text.replace("\x1b", "")
    elif dress == "no colour":
        for code in (*range(91, 98), 0):
            text = text.replace(f"\x1b[{code}m", "")
    elif dress == "windows":
        text = text.replace("\n", "\r\n")
    elif dress == "compose":
        text = "".join(f"personaplex-1  | {line}" for line in text.splitlines(keepends=True))
    elif dress == "coloured compose":
        text = "".join(f"\x1b[36mpersonaplex-1  | \x1b[0m{line}" for line in text.splitlines(keepends=True))
    log = read(tmp_path, text)
    assert tuple(map(bare, log.connections)) == read_log(SAMPLE).connections
    assert {c.process for c in log.connections} == {"personaplex-1" if "compose" in dress else ""}
    assert (log.lines, log.bad_lines) == (119, 0)


# ---------------------------------------------------------------------------------------------------------- times

# What stands before a line, and the second of the day that it tells.
STAMPS = {
    "2026-11-20T09:19:07.893123456Z ": 33_547.893123456,
    "2026-11-20T09:19:07.8Z ": 33_547.8,
    "2026-11-20T09:19:07 ": 33_547.0,
    "2026-11-20 09:19:07,893 ": 33_547.893,
    "2026-11-20T10:19:07.893+01:00 ": 33_547.893,
    "2026-11-20T04:49:07.893-0430 ": 33_547.893,
    "personaplex-1  | 2026-11-20T09:19:07.893123Z ": 33_547.893123,
    "2026-11-20T09:19:07+0000 gpu-box python3[4711]: ": 33_547.0,
}


@pytest.mark.parametrize("stamp", STAMPS)
def test_a_time_before_a_line_is_its_time(tmp_path: Path, stamp: str) -> None:
    log = read(tmp_path, stamp + came("AB12", 50_000))
    assert [(c.id, c.port) for c in log.connections] == [("AB12", 50_000)]
    assert log.connections[0].came_at == pytest.approx(DAY_AT + STAMPS[stamp], abs=1e-6)


@pytest.mark.parametrize("stamp", ["", "2026-13-40T09:19:07Z ", "2026-11-20T99:19:07Z ", "2026-11-20T09:19:07+99:00 "])
def test_a_line_without_a_time_that_there_is_has_none(tmp_path: Path, stamp: str) -> None:
    log = read(tmp_path, stamp + came("AB12", 50_000))
    assert [(c.id, c.came_at) for c in log.connections] == [("AB12", None)]


def stamped(lines: Iterable[tuple[float, str]], prefix: str = "", apart_s: float = 0.0) -> str:
    """Lines as `docker compose logs -t` gives them, in the order of their instants (unix seconds)."""
    made = []
    for at, text in sorted(lines, key=lambda line: line[0]):
        wall = datetime.fromtimestamp(at + apart_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z "
        made += [f"{prefix}{wall}{line}\n" for line in text.removesuffix("\n").split("\n")]
    return "".join(made)


def life(
    its: str, port: int, begins: float, *, wait_s: float, prompt_s: float, talk_s: float
) -> list[tuple[float, str]]:
    """A served connection: accepted 1 ms after it came, behind the lock for `wait_s`, prompts, a session."""
    shaken = begins + 0.001 + wait_s + prompt_s
    return [
        (begins, came(its, port)),
        *((begins + 0.001 + n * 1e-5, said(its, text)) for n, text in enumerate(PROMPTED)),
        *((begins + 0.001 + wait_s + prompt_s * part, "Done loading text prompt.") for part in (0.3, 0.6, 0.9)),
        (shaken, said(its, SHAKEN[0])),
        (shaken + 0.002, said(its, SHAKEN[1])),
        *((shaken + 0.002 + talk_s + n * 1e-4, said(its, text)) for n, text in enumerate(CLOSED)),
    ]


def test_durations_come_from_dockers_times(tmp_path: Path) -> None:
    first = life("AAAA", 50_001, DAY_AT, wait_s=0.0, prompt_s=3.0, talk_s=10.0)  # done at 13.0032
    second = life("BBBB", 50_002, DAY_AT + 4.0, wait_s=9.0022, prompt_s=2.0, talk_s=5.0)
    one, two = read(tmp_path, stamped([*first, *second], "personaplex-1  | ")).connections
    assert one.durations_s == pytest.approx(
        {"setup": 3.003, "lock_wait": 0.0, "prompt": 3.0, "session": 10.0}, abs=2e-5
    )
    assert two.durations_s == pytest.approx(
        {"setup": 11.0052, "lock_wait": 9.0022, "prompt": 11.0022, "session": 5.0}, abs=2e-5
    )
    assert (one.loaded, two.loaded) == (3, 3)


def test_a_clock_that_was_set_back_makes_no_duration(tmp_path: Path) -> None:
    late = "2026-11-20T10:00:00Z " + came("AAAA", 50_001)
    early = "".join(f"2026-11-20T09:00:00Z {said('AAAA', text)}" for text in (*PROMPTED, *SHAKEN))
    (connection,) = read(tmp_path, late + early).connections
    assert connection.durations_s == {"lock_wait": 0.0, "prompt": 0.0}


# ------------------------------------------------------------------------------------------------- whose a line is


def test_an_id_that_comes_again_is_another_connection(tmp_path: Path) -> None:
    text = served("AAAA", 50_001) + came("AAAA", 50_002) + phases("AAAA", "accepted connection")
    assert [(c.port, c.outcome) for c in read(tmp_path, text).connections] == [
        (50_001, "served"),
        (50_002, "unfinished"),
    ]


def test_an_id_that_comes_again_before_its_first_is_done_is_another_connection(tmp_path: Path) -> None:
    log = read(tmp_path, came("AAAA", 1) + phases("AAAA", "accepted connection") + served("AAAA", 2))
    assert [(c.port, c.outcome) for c in log.connections] == [(1, "unfinished"), (2, "served")]


def test_an_exception_before_acceptance_is_of_the_one_that_just_came(tmp_path: Path) -> None:
    text = came("AAAA", 1) + phases("AAAA", *PROMPTED) + came("BBBB", 2) + TRACEBACK + phases("AAAA", *SHAKEN, *CLOSED)
    assert outcomes(read(tmp_path, text)) == [
        ("AAAA", "served", None),
        ("BBBB", "refused", "RuntimeError: out of memory"),
    ]


def test_an_exception_in_the_prompts_is_of_the_one_that_has_the_lock(tmp_path: Path) -> None:
    text = came("AAAA", 1) + phases("AAAA", *PROMPTED) + came("BBBB", 2) + phases("BBBB", *PROMPTED)
    text += TRACEBACK + "Done loading audio silence.\n" + phases("BBBB", *SHAKEN, *CLOSED)
    log = read(tmp_path, text)
    assert outcomes(log) == [("AAAA", "refused", "RuntimeError: out of memory"), ("BBBB", "served", None)]
    assert [connection.loaded for connection in log.connections] == [0, 1]


def test_an_exception_after_the_handshake_is_a_failure(tmp_path: Path) -> None:
    log = read(tmp_path, came("AAAA", 1) + phases("AAAA", *PROMPTED, *SHAKEN, "connection closed") + TRACEBACK)
    assert outcomes(log) == [("AAAA", "failed", "RuntimeError: out of memory")]


def test_a_server_that_serves_several_at_once_leaves_an_exception_with_nobody(tmp_path: Path) -> None:
    text = "".join(came(its, port) + phases(its, *PROMPTED) for port, its in enumerate(("AAAA", "BBBB")))
    text += phases("BBBB", *SHAKEN) + TRACEBACK + phases("BBBB", *CLOSED) + phases("AAAA", *SHAKEN, *CLOSED)
    log = read(tmp_path, text)
    assert outcomes(log) == [("AAAA", "served", None), ("BBBB", "served", None)]
    assert log.stray == {"RuntimeError: out of memory": 1}


def test_one_that_was_gone_before_its_handshake_was_swallowed(tmp_path: Path) -> None:
    text = came("AAAA", 1) + phases("AAAA", *PROMPTED, "done with system prompts", "done with connection")
    assert outcomes(read(tmp_path, text)) == [("AAAA", "swallowed", None)]


def test_a_restart_leaves_the_open_ones_unfinished(tmp_path: Path) -> None:
    text = came("AAAA", 1) + phases("AAAA", *PROMPTED, *SHAKEN)
    text += "2026-11-20 09:19:08,895 - __main__ - INFO - warming up the model\n"
    text += came("BBBB", 2) + phases("BBBB", *PROMPTED) + TRACEBACK
    assert outcomes(read(tmp_path, text)) == [
        ("AAAA", "unfinished", None),
        ("BBBB", "refused", "RuntimeError: out of memory"),
    ]


def test_a_log_that_begins_in_a_session_does_not_pretend(tmp_path: Path) -> None:
    text = phases("AAAA", *CLOSED) + phases("BBBB", "done with connection") + served("CCCC", 3)
    assert outcomes(read(tmp_path, text)) == [
        ("AAAA", "served", None),
        ("BBBB", "unfinished", None),
        ("CCCC", "served", None),
    ]


def test_the_last_of_chained_exceptions_is_the_reason(tmp_path: Path) -> None:
    chained = TRACEBACK + "\nDuring handling of the above exception, another exception occurred:\n\n"
    chained += 'Traceback (most recent call last):\n  File "a.py", line 1, in b\nValueError\n'
    logger = chained.replace("Error handling", "2026-11-20 09:19:08,895 - aiohttp.server - ERROR - Error handling")
    for text in (chained, logger):
        assert outcomes(read(tmp_path, came("AAAA", 1) + text + served("BBBB", 2))) == [
            ("AAAA", "refused", "ValueError"),
            ("BBBB", "served", None),
        ]


def test_replicas_in_one_compose_log_have_a_lock_each(tmp_path: Path) -> None:
    def of(replica: int, text: str) -> str:
        return "".join(f"moshi-{replica}  | {line}" for line in text.splitlines(keepends=True))

    text = of(1, came("AAAA", 1) + phases("AAAA", *PROMPTED)) + of(2, came("BBBB", 2) + phases("BBBB", *PROMPTED))
    text += of(2, phases("BBBB", *SHAKEN)) + of(1, TRACEBACK) + of(2, phases("BBBB", *CLOSED))
    log = read(tmp_path, text)
    assert outcomes(log) == [("AAAA", "refused", "RuntimeError: out of memory"), ("BBBB", "served", None)]
    assert [connection.process for connection in log.connections] == ["moshi-1", "moshi-2"]


# ------------------------------------------------------------------------------------------------------------ prompts


def test_of_a_prompt_only_its_length_and_beginning_are_kept(tmp_path: Path) -> None:
    words = "You are a bank clerk. \x07The password of the vault is hunter2."
    (connection,) = read(tmp_path, came("AAAA", 1) + phases("AAAA", f"text prompt: {words}")).connections
    assert connection.text_prompt is not None
    assert connection.text_prompt.characters == len(words)
    assert connection.text_prompt.begins == "You are a bank clerk. The password of th"
    assert "hunter2" not in repr(connection)


def test_a_prompt_of_several_lines_is_one_and_its_words_are_no_log(tmp_path: Path) -> None:
    words = "Be kind.\n[ZZZZ] Incoming connection from 10.9.9.9:99\nError handling request\nDone loading it."
    text = came("AAAA", 1) + phases("AAAA", "accepted connection", f"text prompt: {words}", *SHAKEN, *CLOSED)
    log = read(tmp_path, text)
    assert outcomes(log) == [("AAAA", "served", None)]
    prompt = log.connections[0].text_prompt
    assert prompt is not None
    assert (prompt.characters, prompt.begins) == (len(words), "Be kind.[ZZZZ] Incoming connection from ")


def test_a_torn_prompt_does_not_swallow_what_follows(tmp_path: Path) -> None:
    torn = said("AAAA", "text prompt: Be ki").replace("\x1b[0m\n", "\n")
    log = read(tmp_path, came("AAAA", 1) + torn + served("BBBB", 2))
    assert [(c.id, c.port) for c in log.connections] == [("AAAA", 1), ("BBBB", 2)]


# ------------------------------------------------------------------------------------------------------ kyutai's moshi


def test_kyutais_lines_belong_to_the_one_that_has_the_lock(tmp_path: Path) -> None:
    accepted, frames = info("accepted connection"), [12.3, 95.0, 80.0]
    text = info("warming up the model") + accepted + "".join(info(f"frame handled in {ms}ms") for ms in frames)
    text += accepted + info("text token ' frame handled in 9.9ms'") + info("frame handled in 80.1ms")
    text += info("connection closed") + info("done with connection")
    text += info("frame handled in 20.0ms") + "\x1b[1;31m[Warn]\x1b[0m unknown message kind 7\n"
    text += info("connection closed") + TRACEBACK
    one, two = read(tmp_path, text).connections
    assert one.steps_s.tolist() == pytest.approx([0.0123, 0.095, 0.080, 0.0801])
    assert two.steps_s.tolist() == [0.020]
    assert (one.id, one.peer, one.outcome, one.instance) == (None, None, "served", "moshi#0")
    assert (two.outcome, two.reason) == ("failed", "RuntimeError: out of memory")


def test_a_kyutai_log_that_begins_in_a_session_still_tells_its_steps(tmp_path: Path) -> None:
    text = info("frame handled in 20.0ms") + info("done with connection") + info("accepted connection")
    assert [(c.outcome, c.steps_s.tolist()) for c in read(tmp_path, text).connections] == [
        ("served", [0.020]),
        ("unfinished", []),
    ]


# -------------------------------------------------------------------------------------------------------- broken lines

BROKEN: dict[str, bytes] = {
    "no UTF-8": b"\xff\xfe\x80 noise\n",
    "NULs": b"\0\0\0\n",
    "ten megabytes": b"\x1b[97m[AAAA] text prompt: " + b"x" * 10_000_000 + b"\n",
    "just too long": b"x" * LONGEST_LINE_BYTES + b"\n",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_counted_and_the_next_one_read(tmp_path: Path, broken: str) -> None:
    log = read(tmp_path, BROKEN[broken] + served("BBBB", 2).encode())
    assert (outcomes(log), log.bad_lines) == ([("BBBB", "served", None)], 1)


def test_half_a_line_at_the_end_is_none(tmp_path: Path) -> None:
    whole = came("AAAA", 54_321).encode()
    for cut in range(1, len(whole)):
        log = read(tmp_path, served("BBBB", 2).encode() + whole[:-cut])
        assert ([c.id for c in log.connections], log.bad_lines) == (["BBBB"], 1), whole[:-cut]


@pytest.mark.parametrize("torn", ["\x1b[9", "\x1b", "\x1b[", "\x1b[97;", "[97"])
def test_half_a_colour_code_does_no_harm(tmp_path: Path, torn: str) -> None:
    log = read(tmp_path, f"{torn}\n" + said("AAAA", "Incoming connection from 1.2.3.4:77" + torn) + served("BBBB", 2))
    assert [its for its, *_ in outcomes(log)] == ["AAAA", "BBBB"]
    assert log.connections[0].port in (77, None)


@pytest.mark.parametrize("peer", ["1.2.3.4:99999", "1.2.3.4", "", ":", "1.2.3.4:-5", "1.2.3.4:٣"])
def test_an_address_that_is_none_is_left_out(tmp_path: Path, peer: str) -> None:
    (connection,) = read(tmp_path, said("AAAA", f"Incoming connection from {peer}")).connections
    assert (connection.peer, connection.port) == (None, None)


@pytest.mark.parametrize(
    ("peer", "ip"), [("::1:55272", "::1"), ("[::1]:55272", "::1"), ("::ffff:10.0.0.5:55272", "10.0.0.5")]
)
def test_an_ipv6_address_is_one(tmp_path: Path, peer: str, ip: str) -> None:
    (connection,) = read(tmp_path, said("AAAA", f"Incoming connection from {peer}")).connections
    assert (connection.peer, connection.port) == (ip, 55272)


def test_no_garbage_ends_it(tmp_path: Path) -> None:
    """Bytes changed, lines cut and joined, in two servers' logs: nothing is raised, and never more than came."""
    kyutai = (info("accepted connection") + info("frame handled in 12.3ms") * 5 + info("done with connection")) * 5
    whole = (
        SAMPLE.read_bytes()
        + kyutai.encode()
        + stamped(life("AAAA", 5, DAY_AT, wait_s=1.0, prompt_s=2.0, talk_s=3.0)).encode()
    )
    draw = random.Random(7)
    for _ in range(150):
        spoilt = bytearray(whole)
        for _ in range(draw.choice((3, 30, 300))):
            spoilt[draw.randrange(len(spoilt))] = draw.choice(b"\n\0\xff#9:. s-|\x1b[]mAZ")
        for _ in range(3):
            at = draw.randrange(len(spoilt))
            spoilt[at:at] = draw.choice((b"\x1b[9", b"[AAAA] ", b"frame handled in ", b":")) + b"9" * draw.randrange(
                3000
            )
        log = read(tmp_path, bytes(spoilt))
        assert len(log.connections) < 60
        assert all(np.isfinite(c.steps_s).all() for c in log.connections)


# ----------------------------------------------------------------------------------------------------- a log by itself


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_a_log_by_itself_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    status, page, errors = run_main(capsys, SAMPLE)
    assert (status, errors) == (0, "")
    assert "8 connections: 3 served, 5 refused" in page
    assert "1 x KeyError: 'voice_prompt'" in page
    assert "No line has a time" in page


def test_times_and_steps_of_a_log_by_itself_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, figures = tmp_path / "server.log", tmp_path / "figures.csv"
    steps = info("accepted connection") + "".join(info(f"frame handled in {ms}.0ms") for ms in (70, 80, 90, 100))
    path.write_text(stamped(life("AAAA", 50_001, DAY_AT, wait_s=0.0, prompt_s=3.0, talk_s=10.0)) + steps)
    status, page, _ = run_main(capsys, path, "--csv", figures)
    words = " ".join(page.split())
    assert status == 0
    assert "set-up: come to handshake sent 1 3.00 n<72 3.00" in words
    assert "4 frames, p50 85.00, p95 n<72, greatest 100.00 ms; 50.0% took longer than the 80 ms" in words
    with figures.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["setup", "lock_wait", "prompt", "session", *["step"] * 4]
    assert {row["client"] for row in rows[:4]} == {"127.0.0.1:50001"}
    assert float(rows[3]["seconds"]) == pytest.approx(10.0, abs=1e-4)


# --------------------------------------------------------------------------------------------------- beside a run

Row = dict[str, Any]


def session(number: int, port: int | None, **given: Any) -> Row:
    """A session that began `number` seconds after the run's first: up after 3.010 s, ended 10 s later."""
    began = MONOTONIC_AT + 10.0 + number
    ip = given.pop("ip", "127.0.0.1")
    row: Row = {
        "run": RUN,
        "worker": "w0",
        "session": f"s{number}",
        "protocol": "personaplex",
        "dialect": "personaplex",
        "scenario": "demo",
        "stream_id": f"w0-{number}",
        "started_at": began,
        "connected_at": began + 0.002,
        "ready_at": began + 3.010,
        "setup_s": 3.010,
        "ended_at": began + 13.010,
        "ended_by": "user",
        "host": "gpu-a:8998",
        "local_address": None if port is None else f"{ip}:{port}",
        "local_port": port,
        "turns": 1,
        "connections": 1,
        **given,
    }
    if row["ready_at"] is None:
        row["setup_s"] = None
    return row


def duplex_run(parent: Path, rows: list[Row]) -> Run:
    """A run of these sessions, with a turn each."""
    out = [packed_header(facts())]
    for row in rows:
        turn = spoken(
            protocol=row["protocol"],
            session=row["session"],
            stream_id=row["stream_id"],
            intended_at=row["started_at"] + 4.0,
        )
        out += [packed("turn_starts", start_of(turn)), packed("turns", turn), packed("sessions", row)]
    return open_run(make_run(parent, b"".join(out)))


def wall(row: Row) -> float:
    return float(row["connected_at"]) - MONOTONIC_AT + WALL_AT


def logged(row: Row, its: str, port: int | None = None, **given: float) -> list[tuple[float, str]]:
    """The session as its server tells of it."""
    told = {"wait_s": 0.0, "prompt_s": 3.0, "talk_s": 9.0, **given}
    return life(its, port or row["local_port"], wall(row), **told)


def quantiles(rows: pd.DataFrame, column: str, scale: float) -> Row:
    values = rows[column].dropna().to_numpy(dtype=float) * scale
    assert "cluster" in rows
    return {"n": len(values), "p50": float(np.median(values)) if len(values) else None}


def joined(run: Run, path: Path, text: str) -> tuple[Row, dict[str, str]]:
    """What the summary says, and which stream each connection of the log has."""
    path.write_text(text)
    import_server_log(run, path)
    again = replace(run, server=read_table(run.path, "server"))
    found = duplex_join.summary(again, quantiles)
    assert found is not None
    rows = again.server[(again.server["metric"] == "connection") & again.server["stream_id"].notna()]
    return found, dict(zip(rows["instance"].astype(str), rows["stream_id"].astype(str), strict=True))


def test_connections_meet_their_sessions_by_address(tmp_path: Path) -> None:
    rows = [session(20 * n, 50_000 + n) for n in range(3)]
    refused = session(70, 50_009, ready_at=None, ended_by="ws_closed_1006")
    unknown = session(75, None, ready_at=None, ended_by="connection_refused")
    run = duplex_run(tmp_path, [*rows, refused, unknown])
    lines = [line for n, row in enumerate(rows) for line in logged(row, f"AAA{n}")]
    lines += [(wall(refused), came("BAD1", 50_009) + TRACEBACK), (wall(rows[1]) + 0.5, came("ELSE", 61_000))]
    found, streams = joined(run, tmp_path / "server.log", stamped(lines, apart_s=3600.0))
    assert streams == {"AAA0#0": "w0-0", "AAA1#1": "w0-20", "AAA2#3": "w0-40", "BAD1#4": "w0-70"}
    assert (found["connections"], found["joined"], found["served"], found["unfinished"]) == (5, 4, 3, 1)
    assert found["refused"] == {"RuntimeError: out of memory": 1}
    assert (found["sessions"], found["sessions_without"], found["gave_up"]) == (5, 0, {})
    told = found["phases"]
    assert told["setup_ms"] == {"n": 3, "p50": pytest.approx(3003.0, abs=0.1)}
    assert told["prompt_ms"] == {"n": 3, "p50": pytest.approx(3000.0, abs=0.1)}
    assert told["session_ms"] == {"n": 3, "p50": pytest.approx(9000.0, abs=0.1)}
    assert told["client_setup_ms"] == {"n": 3, "p50": pytest.approx(3010.0)}
    assert told["rest_ms"] == {"n": 3, "p50": pytest.approx(7.0, abs=0.1)}
    assert found["step"] is None
    (source,) = sources(run)
    assert (source.kind, source.other_runs) == ("duplex", 0)
    assert source.offset_s == pytest.approx(3600.0, abs=0.001)


def test_the_real_log_meets_sessions_of_its_ports(tmp_path: Path) -> None:
    ports = (55272, 54108, 54110, 46520, 46524, 36850, 36854, 36862)
    rows = [session(20 * n, port) for n, port in enumerate(ports)]
    rows += [session(300, 40_000)]
    found, streams = joined(duplex_run(tmp_path, rows), tmp_path / "server.log", SAMPLE.read_text())
    assert list(streams.values()) == [f"w0-{20 * n}" for n in range(8)]
    assert (found["connections"], found["joined"], found["served"], found["unfinished"]) == (8, 8, 3, 0)
    assert sum(found["refused"].values()) == 5
    assert found["refused"]["KeyError: 'voice_prompt'"] == 1
    assert (found["sessions_without"], found["phases"], found["step"]) == (1, None, None)


def test_behind_nat_the_port_is_enough(tmp_path: Path) -> None:
    rows = [session(20 * n, 50_000 + n, ip="10.0.0.5") for n in range(3)]
    text = "".join(served(f"AAA{n}", 50_000 + n, "203.0.113.9") for n in range(3))
    found, streams = joined(duplex_run(tmp_path, rows), tmp_path / "server.log", text)
    assert found["joined"] == 3
    assert streams == {f"AAA{n}#{n}": f"w0-{20 * n}" for n in range(3)}


def test_another_clients_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    """One of our sessions never reached the server; a stranger's connection happens to have its port."""
    rows = [session(20 * n, 50_000 + n) for n in range(3)]
    text = served("AAA0", 50_000) + served("ELSE", 50_001, "198.51.100.7") + served("AAA2", 50_002)
    found, streams = joined(duplex_run(tmp_path, rows), tmp_path / "server.log", text)
    assert streams == {"AAA0#0": "w0-0", "AAA2#2": "w0-40"}
    assert found["sessions_without"] == 1


def test_a_stranger_on_a_clients_machine_is_not_taken_for_one_behind_nat(tmp_path: Path) -> None:
    """Workers on two machines, one of them behind NAT; a stranger on the other has the port of a session of it."""
    rows = [session(0, 50_000), session(20, 50_001, ip="10.0.0.5")]
    text = served("AAA0", 50_000) + served("ELSE", 50_001)
    assert joined(duplex_run(tmp_path, rows), tmp_path / "a.log", text)[1] == {"AAA0#0": "w0-0"}
    text = served("AAA0", 50_000) + served("AAA1", 50_001, "203.0.113.9")
    streams = joined(duplex_run(tmp_path, rows), tmp_path / "a.log", text)[1]
    assert streams == {"AAA0#0": "w0-0", "AAA1#1": "w0-20"}


def test_of_too_many_connections_of_a_port_the_nearest_are_taken_in_order(tmp_path: Path) -> None:
    rows = [session(0, 50_000), session(20, 50_001), session(40, 50_000)]
    ports = (50_000, 50_000, 60_000, 50_001, 50_000)
    text = "".join(served(f"AAA{n}", port) for n, port in enumerate(ports))
    _, streams = joined(duplex_run(tmp_path, rows), tmp_path / "server.log", text)
    assert streams == {"AAA1#1": "w0-0", "AAA3#3": "w0-20", "AAA4#4": "w0-40"}


@pytest.mark.parametrize("timed", [True, False])
def test_a_port_that_came_twice_is_told_apart_by_order(tmp_path: Path, timed: bool) -> None:
    rows = [session(0, 50_000), session(20, 50_001), session(40, 50_000)]
    text = stamped([line for n, row in enumerate(rows) for line in logged(row, f"AAA{n}")])
    if not timed:
        text = "".join(served(f"AAA{n}", row["local_port"]) for n, row in enumerate(rows))
    _, streams = joined(duplex_run(tmp_path, rows), tmp_path / "server.log", text)
    assert streams == {"AAA0#0": "w0-0", "AAA1#1": "w0-20", "AAA2#2": "w0-40"}


@pytest.mark.parametrize("timed", [True, False])
def test_an_earlier_run_in_the_log_is_left_out(tmp_path: Path, timed: bool) -> None:
    """The earlier run had the ports of this one's first and last session, and was refused all the time."""
    rows = [session(20 * n, 50_000 + n) for n in range(4)]
    if timed:
        lines = [(wall(rows[0]) - 4000 + n, came(f"OLD{n}", 50_000 + 3 * n) + TRACEBACK) for n in range(2)]
        text = stamped([*lines, *(line for n, row in enumerate(rows) for line in logged(row, f"AAA{n}"))])
    else:
        text = "".join(came(f"OLD{n}", 50_000 + 3 * n) + TRACEBACK for n in range(2))
        text += "".join(served(f"AAA{n}", 50_000 + n) for n in range(4))
    run = duplex_run(tmp_path, rows)
    found, streams = joined(run, tmp_path / "server.log", text)
    assert streams == {f"AAA{n}#{n + 2}": f"w0-{20 * n}" for n in range(4)}
    assert (found["connections"], found["joined"], found["refused"], found["other_runs"]) == (4, 4, {}, 2)


def test_the_clock_keeps_apart_what_only_shares_a_port(tmp_path: Path) -> None:
    """A session that never reached the server, and an hour before it a connection from the same port."""
    rows = [session(20 * n, 50_000 + n) for n in range(4)]
    lines = [line for n, row in enumerate(rows[:3]) for line in logged(row, f"AAA{n}")]
    lines += [(wall(rows[0]) - 3600, served("OLD0", 50_003))]
    found, streams = joined(duplex_run(tmp_path, rows), tmp_path / "server.log", stamped(lines))
    assert "OLD0#0" not in streams
    assert (found["joined"], found["sessions_without"], found["other_runs"]) == (3, 1, 1)


def test_each_servers_log_meets_that_servers_sessions(tmp_path: Path) -> None:
    """Two servers, and the same ports to both, as a kernel may give them."""
    a = [session(n, 50_000 + n, host="gpu-a:8998") for n in range(3)]
    b = [session(20 + n, 50_000 + n, host="gpu-b:8998") for n in (1, 2)] + [session(30, 50_007, host="gpu-b:8998")]
    run = duplex_run(tmp_path, [*a, *b])
    joined(run, tmp_path / "a.log", "".join(served(f"AAA{n}", 50_000 + n) for n in range(3)))
    text = "".join(served(f"BBB{n}", port) for n, port in enumerate((50_001, 50_002, 50_007)))
    found, streams = joined(run, tmp_path / "b.log", text)
    assert {its: stream for its, stream in streams.items() if its[0] == "A"} == {
        f"AAA{n}#{n}": f"w0-{n}" for n in range(3)
    }
    assert [streams[f"BBB{n}#{n}"] for n in range(3)] == ["w0-21", "w0-22", "w0-30"]
    assert (found["connections"], found["joined"], found["sessions_without"]) == (6, 6, 0)


def test_sessions_that_were_given_up_behind_the_lock_are_told(tmp_path: Path) -> None:
    """The second waited 10 s and left; the server had its turn at 13 s all the same, and the third's prompts, too."""
    first = session(0, 50_000)
    waiting = session(1, 50_001, ready_at=None, ended_by="handshake_timeout", ended_at=MONOTONIC_AT + 21.0)
    third = session(2, 50_002, ready_at=None, ended_by="handshake_timeout", ended_at=MONOTONIC_AT + 22.0)
    text = stamped(logged(first, "AAAA") + logged(waiting, "BBBB", wait_s=11.0, talk_s=0.1))
    text += came("CCCC", 50_002) + phases("CCCC", *PROMPTED, "done with system prompts", "done with connection")
    found, _ = joined(duplex_run(tmp_path, [first, waiting, third]), tmp_path / "server.log", text)
    assert (found["served"], found["swallowed"], found["joined"]) == (2, 1, 3)
    assert found["gave_up"] == {"handshake_timeout": 2}
    assert found["phases"]["lock_wait_ms"]["n"] == 2
    assert found["phases"]["client_setup_ms"]["n"] == 1


def test_steps_of_kyutais_server_are_figures(tmp_path: Path) -> None:
    frames = "".join(info(f"frame handled in {ms}.0ms") for ms in (20, 40, 60, 80, 100))
    text = (info("accepted connection") + frames + info("connection closed") + info("done with connection")) * 2
    found, streams = joined(duplex_run(tmp_path, [session(0, 50_000)]), tmp_path / "moshi.log", text)
    assert (found["connections"], found["joined"], found["served"], streams) == (2, 0, 2, {})
    assert found["step"] == {"n": 10, "frame_ms": 80.0, "over_percent": 20.0, "step_ms": {"n": 10, "p50": 60.0}}


def test_a_log_imported_twice_counts_once(tmp_path: Path) -> None:
    rows = [session(20 * n, 50_000 + n) for n in range(3)]
    run = duplex_run(tmp_path, rows)
    text = stamped([line for n, row in enumerate(rows) for line in logged(row, f"AAA{n}")])
    for name in ("server.log", "server.log", "copy.log"):
        found, _ = joined(run, tmp_path / name, text)
        assert (found["connections"], found["joined"], found["phases"]["setup_ms"]["n"]) == (3, 3, 3)


def test_a_stray_exception_is_told(tmp_path: Path) -> None:
    rows = [session(0, 50_000), session(20, 50_001)]
    text = served("AAAA", 50_000) + TRACEBACK + served("BBBB", 50_001)
    found, _ = joined(duplex_run(tmp_path, rows), tmp_path / "server.log", text)
    assert found["stray"] == {"RuntimeError: out of memory": 1}
    assert (found["served"], found["refused"], found["failed"]) == (2, {}, {})


def test_without_a_log_there_is_no_summary(tmp_path: Path) -> None:
    assert duplex_join.summary(duplex_run(tmp_path, [session(0, 50_000)]), quantiles) is None


def test_a_run_without_such_sessions_says_so(tmp_path: Path) -> None:
    run = duplex_run(tmp_path, [session(0, 50_000, protocol="voice_agent")])
    with pytest.raises(ForeignTrace, match="has no full-duplex sessions to put it beside"):
        import_server_log(run, SAMPLE)


def test_the_reports_command_takes_such_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = duplex_run(tmp_path, [session(0, 55272), session(20, 54108)])
    assert report_main([str(run.path), "--server-log", str(SAMPLE)]) == 0
    assert "Written: " in capsys.readouterr().out
    rows = read_table(run.path, "server")
    assert set(rows["component"]) == {"personaplex"}
    assert rows["stream_id"].notna().sum() == 2


def test_a_log_that_met_nobody_says_why_and_how_to_drop_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = duplex_run(tmp_path, [session(0, 50_000)])
    assert report_main([str(run.path), "--server-log", str(SAMPLE)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "another run's log, a proxy in between that changes the ports" in words
    (shard,) = (run.path / "server").glob("*.parquet")
    assert f"delete server/{shard.name}" in words
    shard.unlink()
    assert report_main([str(run.path)]) == 0
    assert "What the server's log says" not in capsys.readouterr().out


def test_a_trace_with_full_duplex_sessions_says_which_log_is_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = dict.fromkeys(DuplexSession.__required_keys__) | {"duplex_session": 0, "client": "127.0.0.1:50000"}
    answers = dict.fromkeys(DuplexAnswer.__required_keys__) | {"duplex_session": 0, "duplex_answer": 0}
    trace = tmp_path / "trace.jsonl"
    log = TraceLog(trace, "tone")
    for row in (sessions, answers, answers, answers):
        log.write(row)  # type: ignore[arg-type]
    log.close()
    run = duplex_run(tmp_path, [session(0, 50_000)])
    assert report_main([str(run.path), "--server-log", str(trace)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "rows of 1 full-duplex session and of 3 answers in such, which are not joined" in words
    assert "--duplex-log FILE" in words


def swap(rows: list[Row]) -> list[Row]:
    return rows[::-1]


@pytest.mark.parametrize("order", [list, swap])
def test_no_order_of_a_workers_rows_changes_who_meets_whom(
    tmp_path: Path, order: Callable[[list[Row]], list[Row]]
) -> None:
    rows = [session(20 * n, 50_000) for n in range(3)]
    text = "".join(served(f"AAA{n}", 50_000) for n in range(3))
    _, streams = joined(duplex_run(tmp_path, order(rows)), tmp_path / "server.log", text)
    assert streams == {f"AAA{n}#{n}": f"w0-{20 * n}" for n in range(3)}
