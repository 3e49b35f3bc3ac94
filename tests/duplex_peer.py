"""A full-duplex model whose every sample is known: a chunk out for a chunk in, its voice where a script puts it.

Made of libraries alone (websockets, sphn), not of the code under test. Positions are samples before encoding.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import sphn
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.agent_peer import Pcm, voice

RATE = 24_000
CHUNK = 1_920
CHUNK_S = CHUNK / RATE
LOOK_AHEAD = 156  # samples by which libopus is late
VOICED = 2_500  # amplitude of the user's voice; Opus rings with less
_APART = round(0.5 * RATE)


@dataclass
class Role:
    """What a session does. Chunks are counted from its first; `gap_s` is from the user's last voiced sample."""

    gap_s: float = 0.4
    speech_s: float = 1.2
    pieces: int = 6  # of text, two chunks apart, the first with the answer's first chunk
    prompt_s: float = 0.02
    handshake: bytes = b"\0"
    before_handshake: tuple[bytes, ...] = ()
    head_at_handshake: bool = True  # OpusHead and OpusTags in messages of their own, as PersonaPlex sends them
    answers: Callable[[int], bool] = lambda number: True
    step_s: float = 0.0
    never_shakes_hands: bool = False
    knows_no_such_voice: bool = False  # the TCP connection ends after the 101
    deaf_after: int | None = None  # messages: then it closes, though it has sent no audio
    closes_after: int | None = None  # chunks
    close_code: int | None = 1000  # None: the TCP connection ends
    spoils: tuple[int, ...] = ()  # chunks whose page is corrupted
    extras: dict[int, tuple[bytes, ...]] = field(default_factory=dict)  # further messages after a chunk
    pauses: dict[int, float] = field(default_factory=dict)  # before a chunk, seconds
    at: tuple[tuple[float, float], ...] = ()  # speech at a position and for so long, whatever the user says (seconds)


@dataclass
class Session:
    """What happened in one."""

    number: int
    query: dict[str, list[str]]
    client: tuple[str, int]
    messages_before_handshake: int = 0
    pings: int = 0
    handshake_at: float = 0.0
    first_client_message: bytes = b""
    first_page_at: float = 0.0
    received: int = 0  # chunks
    sent: int = 0
    chunk_at: list[float] = field(default_factory=list)  # when each was handed over
    user_offsets: list[int] = field(default_factory=list)  # positions one past the user's last voiced samples
    onsets: list[tuple[int, float]] = field(default_factory=list)  # position; when its chunk was handed over
    offsets: list[int] = field(default_factory=list)
    piece_at: list[float] = field(default_factory=list)
    lag_max_s: float = 0.0


class DuplexPeer:
    """Serves on a free port in a thread of its own."""

    def __init__(self, role_of: Callable[[int], Role], sessions_at_a_time: int) -> None:
        self._role_of = role_of
        self._at_a_time = sessions_at_a_time
        self.sessions: list[Session] = []
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        self._lock = asyncio.Semaphore(self._at_a_time)
        async with serve(self._session, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._over.wait()

    async def _session(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        parts = urlsplit(socket.request.path)
        session = Session(len(self.sessions), parse_qs(parts.query), socket.remote_address[:2])
        self.sessions.append(session)
        role = self._role_of(session.number)
        if (
            not all(session.query.get(key, [""])[0] for key in ("voice_prompt", "text_prompt"))
            or "seed" in session.query
            or role.knows_no_such_voice
        ):
            socket.transport.abort()
            return
        try:
            async with self._lock:
                await _Talk(socket, session, role).run()
        except (ConnectionClosed, asyncio.CancelledError):
            pass


class _Talk:
    def __init__(self, socket: ServerConnection, session: Session, role: Role) -> None:
        self.socket, self.session, self.role = socket, session, role
        self._writer, self._reader = sphn.OpusStreamWriter(RATE), sphn.OpusStreamReader(RATE)
        self._user_last = -1
        self._user_at = 0
        self._speech: list[tuple[int, int]] = [
            (round(at * RATE), round((at + length) * RATE)) for at, length in role.at
        ]  # positions
        self._pieces: dict[int, list[bytes]] = {}  # by chunk
        self._done_at = 0.0

    async def run(self) -> None:
        role, session = self.role, self.session
        for message in role.before_handshake:
            await self.socket.send(message)
        if role.never_shakes_hands:
            await asyncio.Event().wait()
        await asyncio.sleep(role.prompt_s)
        session.messages_before_handshake = len(self.socket.recv_messages.frames)
        session.handshake_at = time.monotonic()
        await self.socket.send(role.handshake)
        if role.head_at_handshake and role.deaf_after is None:
            first = bytes(self._writer.append_pcm(np.zeros(CHUNK, np.float32)))
            second, third = first.index(b"OggS", 4), first.index(b"OggS", first.index(b"OggS", 4) + 4)
            await self.socket.send(b"\x01" + first[:second])
            await self.socket.send(b"\x01" + first[second:third])
            self._writer = sphn.OpusStreamWriter(RATE)  # its own head is cut off below
        waiting = np.empty(0, np.float32)
        read = 0
        async for message in self.socket:
            read += 1
            if role.deaf_after is not None:
                if read >= role.deaf_after:
                    await self.socket.close(1000, "as scripted")
                    return
                continue
            assert isinstance(message, bytes)
            session.first_client_message = session.first_client_message or message
            assert message[0] == 1, f"a client sends audio only, not kind {message[0]}"
            waiting = np.concatenate((waiting, self._reader.append_bytes(message[1:])))
            while len(waiting) >= CHUNK:
                self._hear(waiting[:CHUNK] * 32768)
                waiting = waiting[CHUNK:]
                if not await self._step(time.monotonic()):
                    return

    def _hear(self, samples: Any) -> None:
        """Notice where the user's voice ends; half a second later it is certain."""
        loud = np.flatnonzero(np.abs(samples) >= VOICED)
        if loud.size:
            self._user_last = self._user_at + int(loud[-1])
        self._user_at += CHUNK
        certain = round(min(0.5, self.role.gap_s - CHUNK_S) * RATE) if self.role.gap_s > CHUNK_S else 0
        if self._user_last >= 0 and self._user_at - self._user_last > max(certain, round(0.2 * RATE)):
            ended = self._user_last + 1 - LOOK_AHEAD
            self._user_last = -1
            self.session.user_offsets.append(ended)
            if self.role.answers(len(self.session.user_offsets) - 1):
                begin = ended + round(self.role.gap_s * RATE)
                self._speech.append((begin, begin + round(self.role.speech_s * RATE)))

    async def _step(self, read_at: float) -> bool:
        role, session = self.role, self.session
        session.received += 1
        if role.step_s:
            self._done_at = max(self._done_at, read_at) + role.step_s
            await asyncio.sleep(max(0.0, self._done_at - time.monotonic()))
        number = session.sent
        if number in role.pauses:
            await asyncio.sleep(role.pauses[number])
        samples = self._voiced(number)
        page = bytes(self._writer.append_pcm(samples.astype(np.float32) / 32768))
        if number == 0 and role.head_at_handshake:
            page = page[[i for i in range(len(page)) if page.startswith(b"OggS", i)][2] :]
        if number in role.spoils:
            page = page[:-4] + bytes(byte ^ 0xFF for byte in page[-4:])
        now = time.monotonic()
        begin = number * CHUNK
        for first, last in self._speech:
            if begin <= first < begin + CHUNK:
                session.onsets.append((first, now))
                for k in range(role.pieces):
                    self._pieces.setdefault(number + 2 * k, []).append(f"\x02 word{k}".encode())
            if begin < last <= begin + CHUNK:
                session.offsets.append(last)
        session.first_page_at = session.first_page_at or now
        session.chunk_at.append(now)
        await self.socket.send(b"\x01" + page)
        session.sent += 1
        session.lag_max_s = max(session.lag_max_s, now - read_at)
        for message in (*self._pieces.pop(number, ()), *role.extras.get(number, ())):
            session.piece_at.append(time.monotonic())
            await self.socket.send(message)
        if role.closes_after is not None and session.sent >= role.closes_after:
            if role.close_code is None:
                self.socket.transport.abort()
            else:
                await self.socket.close(role.close_code, "as scripted")
            return False
        return True

    def _voiced(self, number: int) -> Pcm:
        out = np.zeros(CHUNK, np.int16)
        begin = number * CHUNK
        for first, last in self._speech:
            low, high = max(first, begin), min(last, begin + CHUNK)
            if low < high:
                said = voice((last - first) / RATE, RATE)
                out[low - begin : high - begin] = said[low - first : high - first]
        return out


@contextmanager
def duplex_peer(
    role_of: Callable[[int], Role] | Role | None = None, sessions_at_a_time: int = 100
) -> Iterator[DuplexPeer]:
    """A peer; role_of: what the session of a number does."""
    role = role_of if isinstance(role_of, Role) else Role()
    peer = DuplexPeer(role_of if callable(role_of) else lambda _: role, sessions_at_a_time)
    peer.start()
    try:
        yield peer
    finally:
        peer.stop()
