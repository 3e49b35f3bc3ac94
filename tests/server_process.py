"""Run the bundled server as its users do: a real process on a free port. Knows nothing of what it is asked."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from gpu_server.trace import TraceHeader, TraceRow, read_trace

ROOT = Path(__file__).resolve().parent.parent
START_S = 60.0
STOP_S = 10.0
ROWS_S = 15.0

T = TypeVar("T")


@dataclass
class Server:
    """A server that is ready to answer."""

    url: str
    port: int
    trace: Path | None
    process: "subprocess.Popen[str]"
    ready_line: str
    stderr_lines: list[str] = field(default_factory=list)
    stdout_lines: list[str] = field(default_factory=list)

    def header(self) -> TraceHeader:
        assert self.trace is not None
        header = read_trace(self.trace)[0]
        assert header is not None
        return header

    def rows(self, wait_for: int = 0, within_s: float = ROWS_S) -> list[TraceRow]:
        """The trace's rows once there are `wait_for` of them: a row follows the last byte of its answer."""
        assert self.trace is not None, "start the server with a trace to read its rows"
        deadline = time.monotonic() + within_s
        while True:
            rows = read_trace(self.trace)[1]
            if len(rows) >= wait_for:
                return rows
            assert time.monotonic() < deadline, f"{len(rows)} trace rows after {within_s} s, expected {wait_for}"
            time.sleep(0.005)

    def row(self, request_id: str) -> TraceRow:
        """The row of one request, as soon as it is written."""
        return self.until(lambda: next((row for row in self.rows() if row["request_id"] == request_id), None))

    def until(self, probe: Callable[[], T | None], within_s: float = ROWS_S) -> T:
        """What `probe` returns once that is not None."""
        deadline = time.monotonic() + within_s
        while (found := probe()) is None:
            assert time.monotonic() < deadline, f"nothing within {within_s} s"
            time.sleep(0.005)
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask the process to end; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextmanager
def running_server(
    *args: str, trace: Path | str | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start `python -m gpu_server *args --port 0`, yield it once it is ready, end it afterwards."""
    command = [sys.executable, "-m", "gpu_server", *args, "--port", "0"]
    if trace is not None:
        command += ["--trace", str(trace)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: queue.Queue[str | None] = queue.Queue()
    stdout_lines: list[str] = []
    stderr_lines: list[str] = []
    drains = [
        threading.Thread(target=_drain, args=(process.stdout, stdout_lines, said), daemon=True),
        threading.Thread(target=_drain, args=(process.stderr, stderr_lines, None), daemon=True),
    ]
    for drain in drains:
        drain.start()
    try:
        line = said.get(timeout=START_S)
        if line is None:
            process.wait(STOP_S)
            drains[1].join(STOP_S)
            raise AssertionError(f"the server ended with {process.returncode}: {''.join(stderr_lines)}")
        url = line.split(" on ", 1)[1].split()[0]
        path = None if trace is None else Path(trace)
        yield Server(url, int(url.rsplit(":", 1)[1]), path, process, line.rstrip("\n"), stderr_lines, stdout_lines)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for drain in drains:
            drain.join(STOP_S)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _drain(pipe: IO[str], lines: list[str], said: "queue.Queue[str | None] | None") -> None:
    for line in pipe:
        lines.append(line)
        if said is not None:
            said.put(line)
    if said is not None:
        said.put(None)
