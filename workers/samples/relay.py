"""Carry a worker's log to the master, by byte ranges. Knows nothing of what the bytes mean.

The worker ships a range and waits for the acknowledgement, an offset: how much of the log the master has. The master
appends idempotently, so anything may be sent twice, and nothing is lost while either end still has its disk.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import gevent
from gevent.event import Event

from workers.samples.recorder import LogFull

PIECE_BYTES = 256 * 1024  # one outstanding, so that Locust's heartbeats never wait behind rows
SHIP_EVERY_S = 1.0
ASK_AGAIN_S = 5.0

_log = logging.getLogger("cicada")

Send = Callable[[str, dict[str, object]], None]


class Relay:
    """The worker's end. `size` tells how long the log is by now."""

    def __init__(self, run: str, worker: str, path: Path, size: Callable[[], int], send: Send) -> None:
        self._run, self._worker, self._size, self._send = run, worker, size, send
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.acknowledged = 0
        self._answered = Event()
        self._poked = Event()
        self._greenlet = gevent.spawn(self._ship)

    def _ship(self) -> None:
        while True:
            while self.acknowledged < self._size():
                self._answered.clear()
                self._send_range(os.pread(self._file, PIECE_BYTES, self.acknowledged))
                while not self._answered.wait(ASK_AGAIN_S):
                    # No answer: the piece or its acknowledgement may be lost. An empty range asks how far it got,
                    # without piling up pieces in the socket's queue while the master is away.
                    self._answered.clear()
                    self._send_range(b"")
            self._poked.wait(SHIP_EVERY_S)
            self._poked.clear()

    def _send_range(self, data: bytes) -> None:
        message: dict[str, object] = {
            "run": self._run,
            "worker": self._worker,
            "offset": self.acknowledged,
            "data": data,
        }
        try:
            self._send("cicada_rows", message)
        except Exception as error:  # whatever the channel raises: a message lost, which is asked for again
            _log.warning("worker %s cannot reach the master: %s", self._worker, error)

    def acknowledge(self, offset: int) -> None:
        """The master has the first `offset` bytes."""
        self.acknowledged = offset
        self._answered.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until the master has everything; whether it has."""
        until = time.monotonic() + timeout_s
        while self.acknowledged < self._size() and time.monotonic() < until:
            self._poked.set()
            gevent.sleep(0.01)
        return self.acknowledged >= self._size()

    def close(self) -> None:
        self._greenlet.kill()
        os.close(self._file)


class Inlet:
    """The master's end, for one worker's log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.size = os.fstat(self._file).st_size

    def take(self, offset: int, data: bytes) -> int:
        """Append what is new of a range; the log's length then. Raises LogFull, with the log as it was."""
        fresh = data[self.size - offset :] if offset <= self.size else b""
        if fresh:
            try:
                done = os.write(self._file, fresh)
            except OSError as error:
                raise LogFull(error.errno, f"{error.strerror}: {self.path}") from error
            if done != len(fresh):
                os.ftruncate(self._file, self.size)
                raise LogFull(None, f"no space left for {self.path}")
            self.size += done
        return self.size

    def close(self) -> None:
        os.close(self._file)


def copy_tail(spool: Path, log: Path) -> int:
    """Append to `log` what `spool` has beyond it; bytes copied. Raises ValueError where they are not the same log."""
    with spool.open("rb") as source:
        inlet = Inlet(log)
        try:
            with log.open("rb") as here:
                known = here.read(4096)  # the header, which names run and worker, is shorter
            beginning = source.read(len(known))
            if beginning != known[: len(beginning)]:
                raise ValueError(f"{spool} is not the log that {log} is a part of")
            source.seek(inlet.size)
            copied = 0
            while data := source.read(PIECE_BYTES):
                inlet.take(inlet.size, data)
                copied += len(data)
            return copied
        finally:
            inlet.close()
