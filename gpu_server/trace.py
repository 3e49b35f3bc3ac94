"""The server's own account of each request, one JSON line each. Knows nothing of HTTP, engines or audio.

A trace file: a header line, then one row a request to a speech route, also a refused or bad one. Instants end `_at`:
time.monotonic() of the server's host; the header's `wall_at` and `monotonic_at` were read together.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Literal, TypedDict, cast

TRACE_VERSION = 1

Outcome = Literal["ok", "client_gone", "failed", "refused", "bad_request"]


class TraceHeader(TypedDict):
    """Who wrote the file, and how its monotonic instants map to wall time."""

    cicada_trace: int
    server: str
    engine: str
    pid: int
    host: str
    wall_at: float
    monotonic_at: float


class TraceRow(TypedDict):
    """One request. An instant that was never reached is None."""

    request_id: str | None  # X-Request-ID as the client sent it
    route: str
    received_at: float  # headers parsed
    admitted_at: float | None  # out of the queue
    first_audio_at: float | None  # just before the write that carries the first audio bytes
    finished_at: float
    queue_wait_s: float | None  # admitted_at - received_at
    ttfb_s: float | None  # first_audio_at - received_at
    audio_s: float  # audio handed to the connection
    characters: int | None
    voice: str | None
    format: str | None
    outcome: Outcome
    status: int | None  # as sent; None when the client left before any
    fault: str | None  # injected faults that took effect, comma-joined
    fault_s: float | None  # seconds of delay, stall and silence they injected, as measured


class TraceLog:
    """Appends rows to a file, each with one write, so that a killed server loses none."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path = path
        self.lost = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", buffering=1, encoding="utf-8")
        header = TraceHeader(
            cicada_trace=TRACE_VERSION,
            server="gpu_server",
            engine=engine,
            pid=os.getpid(),
            host=socket.gethostname(),
            wall_at=time.time(),
            monotonic_at=time.monotonic(),
        )
        self._append(header)

    def write(self, row: TraceRow) -> None:
        """Append a row. A full disk costs the row, not the service: it is counted, and said once."""
        try:
            self._append(row)
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                print(f"gpu_server: trace rows are being lost: cannot write {self.path}: {error}", file=sys.stderr)

    def close(self) -> None:
        self._file.close()

    def _append(self, record: TraceHeader | TraceRow) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")


def read_trace(path: Path) -> tuple[TraceHeader | None, list[TraceRow], int]:
    """Read a trace file: its latest header (None without one), its rows, and how many lines were neither.

    A torn last line, garbage and rows that lack a column are counted, never raised. Columns this version does
    not know are kept.
    """
    with path.open(encoding="utf-8", errors="replace") as lines:
        return parse_trace(lines)


def parse_trace(lines: Iterable[str]) -> tuple[TraceHeader | None, list[TraceRow], int]:
    """`read_trace` for lines at hand."""
    header: TraceHeader | None = None
    rows: list[TraceRow] = []
    bad_lines = 0
    for line in lines:
        if not line.strip():
            continue
        record = _record(line)
        if record.keys() >= TraceHeader.__required_keys__:
            header = cast(TraceHeader, record)
        elif record.keys() >= TraceRow.__required_keys__:
            rows.append(cast(TraceRow, record))
        else:
            bad_lines += 1
    return header, rows, bad_lines


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
