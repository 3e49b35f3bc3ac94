"""Hold one full-duplex session: wait for the lock, shake hands, then a chunk out for a chunk in. A websocket.Listener.

The habits are those of PersonaPlex's server. Wrong parameters: 101, then the connection is dropped without a close
frame. Others wait silently for their turn and get no answer to a ping; what they send before the handshake is
swallowed, so that a client that was too early has lost its OpusHead and is closed with 1000 at its next page. A page
that cannot be read ends a session likewise (duplex_opus says what cannot). Output is driven by input: who pauses gets a
pause. With a step time each chunk takes so long, one after the other, and what comes too fast waits; nothing is
dropped. Knows nothing of what is said.
"""

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from gpu_server.admission import Admission
from gpu_server.agent_log import AgentLog
from gpu_server.duplex_log import SessionLog
from gpu_server.duplex_opus import CHUNK, Floats, InStream, OutStream, Undecodable, opening
from gpu_server.duplex_talk import Mind, Step
from gpu_server.duplex_wire import AUDIO, HANDSHAKE, TEXT, UNKNOWN, Unanswerable, read_prompts
from gpu_server.ticker import Ticker
from gpu_server.trace import DuplexSession
from gpu_server.websocket import Connection

_NORMAL, _TOO_BIG, _FAILED = 1000, 1009, 1011  # WebSocket close codes
_LONGEST_MESSAGE: Final = 1 << 15  # bytes; the usual one has 400
_MOST_WAITING: Final = 750  # chunks read and not yet stepped: a minute; beyond that nothing is read
_SPOILT: Final = 8  # bytes at the end of a corrupted page


@dataclass(frozen=True, slots=True)
class Line:
    """What all sessions share."""

    lock: Admission
    ticker: Ticker
    step_s: float
    repeating: bool  # the same answers in all sessions
    log: AgentLog
    mind: Callable[[int, Callable[[Exception], None]], Mind]  # of a session's number, and whom to tell of a failure
    ignored: Callable[[str], None]
    ended: Callable[[DuplexSession], None]


class Session:
    """One client, from its 101 to its end."""

    def __init__(self, line: Line, number: int, path: str) -> None:
        self._line = line
        self._path = path
        self._log = SessionLog(line.log)
        self._connection: Connection | None = None
        self._mind: Mind | None = None  # from the handshake on
        self._in = InStream()
        self._out = OutStream(line.repeating)
        self._rest: Floats = np.empty(0, np.float32)
        self._waiting: deque[tuple[Floats, float]] = deque()  # chunks, and when their last bytes were read
        self._free_at = 0.0  # when the model has done what it was given
        self._due = False  # a tick is
        self._stepping = False
        self._held = False
        self._task: asyncio.Task[None] | None = None
        self._row = DuplexSession(
            duplex_session=number,
            log_id=self._log.id,
            client="",
            voice_prompt=None,
            connected_at=0.0,
            lock_at=None,
            handshake_at=None,
            first_piece_at=None,
            closed_at=0.0,
            swallowed=0,
            ignored=0,
            chunks_in=0,
            chunks_out=0,
            pieces=0,
            lag_max_s=None,
            outcome="",
            error=None,
        )

    # What the connection tells

    def opened(self, connection: Connection) -> None:
        self._row["connected_at"] = time.monotonic()
        self._row["client"] = connection.client
        self._connection = connection
        connection.leave_in_peace()
        connection.answers_pings = False
        self._log.incoming(connection.client)
        try:
            prompts = read_prompts(self._path)
        except Unanswerable as error:
            self._log.failed(str(error))
            self._row["error"] = str(error)
            self._leave("bad_parameters")
            connection.cut()
            return
        self._row["voice_prompt"] = prompts.voice
        self._log.accepted(prompts)
        mind = self._line.mind(self._row["duplex_session"], self._failed)

        async def attend() -> None:
            try:
                async with self._line.lock.slot():
                    self._row["lock_at"] = time.monotonic()
                    await mind.prepare(prompts)
                    self._shake_hands(connection, mind)
                    await asyncio.Event().wait()  # until the end cancels it
            except Exception as error:
                self._failed(error)

        self._task = asyncio.get_running_loop().create_task(attend())

    def message(self, data: bytes, at: float) -> None:
        if self._mind is None:
            self._row["swallowed"] += 1
            return
        if len(data) > _LONGEST_MESSAGE:
            self._close("too_big", _TOO_BIG, f"{len(data)} bytes; a message has {_LONGEST_MESSAGE} at most")
            return
        if data[:1] != AUDIO:
            self._ignore(f"duplex_kind_{data[0]}" if data else "duplex_empty")
            return
        try:
            heard = self._in.feed(data[1:])
        except Undecodable as error:
            self._log.failed(f"ValueError: {error}")
            self._row["error"] = str(error)
            self._close("undecodable", _NORMAL, "")
            return
        samples = np.concatenate((self._rest, heard)) if self._rest.size else heard
        whole = len(samples) - len(samples) % CHUNK
        for start in range(0, whole, CHUNK):
            self._waiting.append((samples[start : start + CHUNK], at))
        self._rest = samples[whole:]
        self._row["chunks_in"] += whole // CHUNK
        if not self._due:
            self._go_on(time.monotonic())
        if len(self._waiting) > _MOST_WAITING and not self._held and self._connection is not None:
            self._held = True
            self._connection.hold()

    def text(self) -> None:
        self._ignore("duplex_text_message")

    def closed(self, by_client: bool) -> None:
        self._connection = None
        if self._task is not None:
            self._task.cancel()
        self._leave("client_gone" if by_client else "stopped")
        if self._row["voice_prompt"] is not None:
            self._log.gone()
            self._log.closed()
        self._row["closed_at"] = time.monotonic()
        self._line.ended(self._row)

    # Inside

    def _shake_hands(self, connection: Connection, mind: Mind) -> None:
        self._log.prompted()
        self._mind = mind
        connection.answers_pings = True
        self._row["handshake_at"] = time.monotonic()
        connection.send(HANDSHAKE)
        self._log.shaken_hands()
        for page in opening():
            connection.send(AUDIO + page)

    def _go_on(self, now: float) -> None:
        """Step through what waits, as far as it is due."""
        mind = self._mind
        while mind is not None and self._waiting and not self._stepping and self._connection is not None:
            heard, read_at = self._waiting[0]
            if stall_s := mind.stall_s():
                self._free_at = max(self._free_at, now) + stall_s
            due_at = max(self._free_at, read_at) + self._line.step_s
            if due_at > now:
                self._due = True
                self._line.ticker.call_at(due_at, self._tick)
                break
            self._free_at = due_at
            self._waiting.popleft()
            step = mind.step(heard)
            if isinstance(step, Step):
                self._put(step, read_at)
            else:
                self._stepping = True
                step.add_done_callback(partial(self._stepped, read_at))
        if self._held and len(self._waiting) <= _MOST_WAITING // 2 and self._connection is not None:
            self._held = False
            self._connection.release()

    def _tick(self, now: float) -> None:
        self._due = False
        self._go_on(now)

    def _stepped(self, read_at: float, done: "asyncio.Future[Step]") -> None:
        self._stepping = False
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, Exception):
            self._failed(error)
            return
        self._put(done.result(), read_at)
        self._go_on(time.monotonic())

    def _put(self, step: Step, read_at: float) -> None:
        connection, mind, row = self._connection, self._mind, self._row
        if connection is None or mind is None:
            return
        if step.end is not None:
            self._end(step.end)
            return
        if step.pcm is None:
            return
        message = AUDIO + self._out.payload(step.pcm)
        if step.spoilt:
            message = message[:-_SPOILT] + bytes(byte ^ 0xFF for byte in message[-_SPOILT:])
        # Stamped here and nowhere earlier: clients hold this against the kernel's receive stamp.
        now = time.monotonic()
        mind.note_written(step, now)
        connection.send(message)
        row["chunks_out"] += 1
        row["lag_max_s"] = max(row["lag_max_s"] or 0.0, now - read_at)
        for piece in step.pieces:
            row["first_piece_at"] = row["first_piece_at"] or time.monotonic()
            row["pieces"] += 1
            connection.send(TEXT + piece)
        if step.strange:
            connection.send(UNKNOWN)

    def _end(self, how: str) -> None:
        """End the session as a fault says."""
        if how == "cut":
            self._leave("cut")
            if self._connection is not None:
                self._connection.cut()
        elif how == "close":
            self._close("close", _NORMAL, "")
        else:
            self._close("error", _FAILED, "injected fault: error")

    def _failed(self, error: Exception) -> None:
        words = f"{type(error).__name__}: {error}"
        print(f"gpu_server: session {self._row['duplex_session']} failed: {words}", file=sys.stderr)
        self._log.failed(words)
        self._row["error"] = words
        self._close("failed", _FAILED, words)

    def _ignore(self, kind: str) -> None:
        self._row["ignored"] += 1
        self._line.ignored(kind)

    def _close(self, outcome: str, code: int, reason: str) -> None:
        self._leave(outcome)
        if self._connection is not None:
            self._connection.close(code, reason)

    def _leave(self, outcome: str) -> None:
        """Say how it ends; what comes first counts."""
        if not self._row["outcome"]:
            self._row["outcome"] = outcome
            self._waiting.clear()
            if self._mind is not None:
                self._mind.leave("client_gone" if outcome == "client_gone" else "failed")
