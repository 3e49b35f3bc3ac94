"""Ask the hearing subprocess without ever waiting for it. Knows nothing of what the questions mean.

Careful listening takes a millisecond of computing, and threads under gevent share the thread that paces the
microphones: so a process of its own listens (ear_child.py). When it dies, every question it still owes is answered
with EarLost, and the next question starts a new one.
"""

import itertools
import logging
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import msgpack
from gevent import socket
from gevent.event import Event
from gevent.subprocess import Popen

from workers.audio.ear_child import LARGEST_BYTES

MOST_QUEUED_BYTES = 64 << 20
SILENCE_S = 10.0  # a child that owes an answer and says nothing for so long is taken for dead
_READ_BYTES = 1 << 18
_ROOT = Path(__file__).resolve().parents[2]
_COMMAND = (sys.executable, "-m", "workers.audio.ear_child")
_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0  # between children none of which ever answered

_log = logging.getLogger("cicada")

Then = Callable[[Any], None]


class EarLost(Exception):
    """No answer will come: the subprocess died, fell silent, or has too much to do. Given to `then`, not raised."""


class EarRefused(Exception):
    """The question was wrong, and what was wrong with it. Given to `then`, not raised."""


class Ear:
    """Makes no process before the first question. `lost` counts processes that died with or without a question."""

    def __init__(self, command: tuple[str, ...] = _COMMAND, silence_s: float = SILENCE_S) -> None:
        self._command, self._silence_s = command, silence_s
        self._life: _Life | None = None
        self._closed = False
        self._wait_s = 0.0
        self._not_before = 0.0
        self.lost = 0

    @property
    def waiting(self) -> int:
        """Questions not answered yet."""
        return len(self._life.asked) if self._life else 0

    @property
    def pid(self) -> int | None:
        """The subprocess, once it runs."""
        return self._life.process.pid if self._life and self._life.process else None

    def ask(self, verb: str, arguments: list[Any], then: Then) -> None:
        """Have `then` called with the answer, an EarRefused or an EarLost, in a greenlet that others wait for.

        Never blocks and may be called from gevent's hub. What cannot be asked is answered with EarLost at once.
        """
        if self._closed:
            return _tell(then, EarLost("the ear is closed"))
        if self._life is None:
            if time.monotonic() < self._not_before:
                return _tell(then, EarLost(f"the ear died before its first answer; see its messages: {self._command}"))
            self._life = _Life(self._command, self._silence_s, self._ended)
        life = self._life
        if life.queued_bytes > MOST_QUEUED_BYTES:
            return _tell(then, EarLost(f"{life.queued_bytes >> 20} MB are waiting to be heard"))
        life.ask(verb, arguments, then)

    def close(self) -> None:
        """End the subprocess; what it still owes is answered with EarLost."""
        self._closed = True
        if self._life is not None:
            self._life.end("the ear is closed")

    def _ended(self, life: "_Life") -> None:
        self._life = None
        if self._closed:
            return
        self.lost += 1
        # One that never answered cannot be started here; asking again at once would fork as fast as turns end.
        self._wait_s = 0.0 if life.answered else min(_LONGEST_WAIT_S, max(_WAIT_S, 2 * self._wait_s))
        self._not_before = time.monotonic() + self._wait_s
        _log.warning("The hearing subprocess ended (%s). %d onsets or offsets are lost.", life.why, len(life.asked))


class _Life:
    """One subprocess, from its first question to its death."""

    def __init__(self, command: tuple[str, ...], silence_s: float, ended: Callable[["_Life"], None]) -> None:
        self._command, self._silence_s, self._ended = command, silence_s, ended
        self.asked: dict[int, Then] = {}
        self.answered = 0
        self.queued_bytes = 0
        self.why = ""
        self.process: Popen | None = None
        self._numbers = itertools.count()
        self._outbox: deque[bytes] = deque()
        self._more = Event()
        self._busy_since = 0.0
        self._over = False
        self._socket, self._childs_end = socket.socketpair()
        self._socket.settimeout(silence_s)
        self._greenlets = [gevent.spawn(self._write), gevent.spawn(self._read)]

    def ask(self, verb: str, arguments: list[Any], then: Then) -> None:
        number = next(self._numbers)
        question = msgpack.packb([number, verb, arguments])
        if not self.asked:
            self._busy_since = time.monotonic()
        self.asked[number] = then
        self._outbox.append(question)
        self.queued_bytes += len(question)
        self._more.set()

    def end(self, why: str) -> None:
        """Kill, and answer what is owed. Never blocks: the child is reaped by a greenlet of its own."""
        if self._over:
            return
        self._over, self.why = True, why
        self._socket.close()
        self._childs_end.close()
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            gevent.spawn(self.process.wait)
        self._more.set()
        self._ended(self)
        owed, self.asked = list(self.asked.values()), {}
        for then in owed:
            _tell(then, EarLost(why))

    def _write(self) -> None:
        try:
            # In the greenlet: making a process takes milliseconds, and whoever asks may be the hub.
            self.process = Popen(
                self._command, stdin=self._childs_end, stdout=self._childs_end, cwd=_ROOT, close_fds=True
            )
            if self._over:  # closed meanwhile
                self.process.kill()
                self.process.wait()
                return
            self._childs_end.close()
            while not self._over:
                while self._outbox:
                    question = self._outbox.popleft()
                    self._socket.sendall(question)
                    self.queued_bytes -= len(question)
                self._more.wait()
                self._more.clear()
        except (OSError, subprocess.SubprocessError) as error:
            self.end(f"it cannot be asked: {error}")

    def _read(self) -> None:
        unpacker = msgpack.Unpacker(max_buffer_size=LARGEST_BYTES)
        try:
            while not self._over:
                data = self._heard()
                if data is None:
                    # Silence counts from the last answer or from the first question after it, whichever came later.
                    idle_s = time.monotonic() - self._busy_since
                    if self.asked and idle_s >= self._silence_s:
                        return self.end(f"no answer for {idle_s:.1f} s")
                    continue
                if not data:
                    return self.end("it died")
                self._busy_since = time.monotonic()
                unpacker.feed(data)
                for number, wrong, result in unpacker:
                    self.answered += 1
                    then = self.asked.pop(number)
                    _tell(then, result if wrong is None else EarRefused(wrong))
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.end(f"{type(error).__name__}: {error}")

    def _heard(self) -> bytes | None:
        """What came, b"" at the end, None if nothing came for long."""
        with suppress(TimeoutError):
            return bytes(self._socket.recv(_READ_BYTES))
        # After a stall of this process the timer may run out before what came meanwhile is noticed.
        self._socket.settimeout(0.0)
        try:
            return bytes(self._socket.recv(_READ_BYTES))
        except BlockingIOError:
            return None
        finally:
            self._socket.settimeout(self._silence_s)


def _tell(then: Then, answer: Any) -> None:
    try:
        then(answer)
    except Exception:  # one listener's fault must not cost the others their answers
        _log.exception("What was heard could not be used")
