"""Send one answer's audio in real time, chunk by chunk, on an absolute clock. Knows nothing of what is said or why."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gpu_server.ticker import Ticker

_AHEAD_S = 10.0  # of audio made and not yet sent; whoever makes it waits beyond that


@dataclass(frozen=True, slots=True)
class Outlet:
    """Where audio goes and how it is cut."""

    ticker: Ticker
    send: Callable[[bytes], None]  # takes s16le samples of one chunk
    bytes_per_s: int
    chunk_bytes: int

    @property
    def chunk_s(self) -> float:
        return self.chunk_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Mishap:
    """What shall go wrong on the way, at which second of the audio."""

    stall_after_s: float | None = None
    stall_s: float = 0.0
    cut_after_s: float | None = None


class Playback:
    """Chunk k leaves at start + (k - 1) chunks, so the first two leave together, as pipecat does.

    When the maker of the audio is late, everything after it moves by as much. `on_end` is called once: when the
    last chunk has been played out at the other end, or at the cut, or at once where there was nothing to play.
    """

    def __init__(
        self, outlet: Outlet, mishap: Mishap, on_first: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        self.sent_bytes = 0
        self.last_audio_at: float | None = None
        self.stalled_s: float | None = None
        self.was_cut = False
        self._outlet = outlet
        self._mishap = mishap
        self._on_first = on_first
        self._on_end = on_end
        self._audio = bytearray()
        self._taken = 0
        self._due_at = 0.0
        self._played_out_at = 0.0
        self._waiting = True  # for audio: no tick is under way
        self._complete = False
        self._stopped = False
        self._room = asyncio.Event()
        self._room.set()

    @property
    def sent_s(self) -> float:
        return self.sent_bytes / self._outlet.bytes_per_s

    async def feed(self, pcm: bytes, now: float) -> None:
        """Take the next samples; waits while far more is at hand than can be sent soon."""
        self._audio += pcm
        self._go_on(now)
        if len(self._audio) - self._taken > _AHEAD_S * self._outlet.bytes_per_s:
            self._room.clear()
        await self._room.wait()

    def complete(self, now: float) -> None:
        """Say that nothing more comes."""
        self._complete = True
        self._go_on(now)

    def stop(self) -> None:
        """Send nothing more and drop the rest; `on_end` is not called."""
        self._stopped = True
        self._audio.clear()
        self._room.set()

    def _go_on(self, now: float) -> None:
        """Send at once what is overdue, after audio was waited for."""
        if not self._waiting or self._stopped:
            return
        if not self._complete and len(self._audio) - self._taken < self._outlet.chunk_bytes:
            return
        self._waiting = False
        self._due_at = max(self._due_at, now)
        if self._due_at > now:
            self._outlet.ticker.call_at(self._due_at, self._tick)
        elif (following := self._tick(now)) is not None:
            self._outlet.ticker.call_at(following, self._tick)

    def _tick(self, now: float) -> float | None:
        """Send one chunk; return when the next is due."""
        outlet = self._outlet
        if self._stopped:
            return None
        left = len(self._audio) - self._taken
        if left < outlet.chunk_bytes and not self._complete:
            self._waiting = True
            return None
        if left == 0:
            return self._end_at(self._played_out_at, now)
        if self._stall_is_due():
            self._due_at += self._mishap.stall_s
            return self._due_at
        size = min(left, outlet.chunk_bytes)
        if (cut := self._bytes_before_cut()) is not None and cut <= size:
            self._send(size=cut, now=now)
            self.was_cut = True
            return self._end_at(now, now)
        first = self.sent_bytes == 0
        self._send(size, now)
        if not first:  # The second chunk goes out with the first.
            self._due_at += outlet.chunk_s
        self._played_out_at = self._due_at + outlet.chunk_s
        return self._due_at

    def _end_at(self, instant: float, now: float) -> float | None:
        if now < instant:
            return instant
        self._stopped = True
        self._on_end()
        return None

    def _stall_is_due(self) -> bool:
        after_s = self._mishap.stall_after_s
        if after_s is None or self.stalled_s is not None or self.sent_s < after_s:
            return False
        self.stalled_s = self._mishap.stall_s
        return True

    def _bytes_before_cut(self) -> int | None:
        if self._mishap.cut_after_s is None:
            return None
        samples = round(self._mishap.cut_after_s * self._outlet.bytes_per_s / 2)
        return max(2, 2 * samples - self.sent_bytes)

    def _send(self, size: int, now: float) -> None:
        if self.sent_bytes == 0:
            self._on_first()
        chunk = bytes(self._audio[self._taken : self._taken + size])
        self._taken += size
        self.sent_bytes += size
        self._outlet.send(chunk)
        self.last_audio_at = now
        if not self._room.is_set() and len(self._audio) - self._taken < _AHEAD_S * self._outlet.bytes_per_s / 2:
            del self._audio[: self._taken]
            self._taken = 0
            self._room.set()
