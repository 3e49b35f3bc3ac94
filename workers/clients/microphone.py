"""Speak in real time: a chunk leaves when it has been spoken, silence included. Knows nothing of audio or dialects.

Chunk k of a microphone holds its samples of [began + k d, began + (k + 1) d) and is due at began + (k + 1) d, as a
real one would deliver it. Microphones are spread over slots of about a millisecond, so that a thousand of them make no
burst. The clock is absolute: a late chunk delays no other.
"""

import time
from array import array
from collections.abc import Callable
from math import ceil, floor
from typing import Any

from workers.clients.line import Line
from workers.clients.switchboard import Switchboard

SLOT_S = 0.001
HEARD_EVERY_S = 0.1
_MANY = 400  # calls: from so many on each is heard half as often, from twice as many on a third: a tenth of the CPU
_SELDOM = 3
_HEARD_TOGETHER = 10  # calls: more make no chunk cheaper, and keep the next slot waiting
_HEARD_WITHIN = 5  # slots
_MOST_AT_ONCE = 50  # slots caught up in a row before sockets are read again
_NEVER = float("inf")


class Spoken:
    """One clip on its way out. Instants: monotonic seconds.

    began_at: mouth time of its first sample. sent_at: when its first chunk was handed to the kernel; voiced_sent_at:
    when the chunk that holds its last voiced sample was. late_s: worst lateness of its chunks against the clock.
    """

    __slots__ = ("_chunks", "_last_voiced", "_position", "began_at", "late_s", "sent_at", "voiced_sent_at")

    def __init__(self, chunks: list[bytes], last_voiced: int) -> None:
        self._chunks, self._last_voiced = chunks, last_voiced
        self._position = 0
        self.began_at = self.sent_at = self.voiced_sent_at = self.late_s = 0.0

    def next(self, due_at: float, now: float) -> bytes:
        position = self._position
        self.late_s = max(self.late_s, now - due_at)
        if position == 0:
            self.sent_at = now
        if position == self._last_voiced:
            self.voiced_sent_at = now
        self._position = position + 1
        return self._chunks[position]

    @property
    def over(self) -> bool:
        return self._position >= len(self._chunks)


class Microphone:
    """One caller's: sends from `Booth.open` to `close`. encode: makes a chunk's bytes when it is sent, if it must."""

    __slots__ = ("_booth", "_slot", "began_at", "call", "clip", "clip_due_at", "encode", "line", "send", "silence")

    def __init__(
        self, booth: "Booth", slot: int, call: Any, *, silence: bytes, encode: Callable[[bytes], bytes] | None
    ) -> None:
        self._booth, self._slot = booth, slot
        line: Line = call.line
        self.line, self.send, self.silence, self.encode, self.call = line, line.send, silence, encode, call
        self.began_at = 0.0  # mouth time of the first sample
        self.clip: Spoken | None = None
        self.clip_due_at = _NEVER  # when the clip's first chunk is due

    def say(self, chunks: list[bytes], last_voiced: int, at: float) -> Spoken:
        """Speak `chunks` from the first chunk boundary at or after `at` on; silence before and after.

        last_voiced: which of them holds the last voiced sample.
        """
        self.clip = clip = Spoken(chunks, last_voiced)
        chunk_s = self._booth.chunk_s
        earliest = max(at, time.monotonic())
        first_due = self._booth.due_at(self._slot, earliest + chunk_s)
        clip.began_at = first_due - chunk_s
        self.clip_due_at = first_due - chunk_s / 2  # halfway: no rounding moves it to another chunk
        return clip

    def close(self) -> None:
        self._booth.remove(self, self._slot)


class Booth:
    """All microphones of a worker behind one beat: a slot first sends what is due, then hears what came."""

    def __init__(self, board: Switchboard, chunk_s: float, hear: Callable[[list[Any]], None]) -> None:
        """hear: called in the hub with calls for which something came, each once in one to three HEARD_EVERY_S."""
        self.chunk_s = chunk_s
        self._board, self._hear = board, hear
        count = max(1, round(chunk_s / SLOT_S))
        self._slot_s = chunk_s / count
        self._fewest_rounds = self._rounds = max(1, round(HEARD_EVERY_S / chunk_s))
        self._open = 0  # microphones
        self._due: list[Any] = []  # calls to be heard
        self._slots: list[list[Microphone]] = [[] for _ in range(count)]
        self._began_at = floor(time.monotonic())  # on a beat, and past: a slot is never waited for
        self._tick = 0
        self._going = False
        self.late_s = array("d")  # of every chunk, until somebody takes them

    def due_at(self, slot: int, at: float) -> float:
        """The first instant at or after `at` at which a chunk of this slot is due."""
        first = self._began_at + slot * self._slot_s
        return first + max(0, ceil((at - first) / self.chunk_s - 1e-9)) * self.chunk_s

    def open(self, call: Any, *, silence: bytes, encode: Callable[[bytes], bytes] | None) -> Microphone:
        """A microphone in the emptiest slot, silent for now."""
        sizes = [len(slot) for slot in self._slots]
        slot = sizes.index(min(sizes))
        microphone = Microphone(self, slot, call, silence=silence, encode=encode)
        self._slots[slot].append(microphone)
        self._count(1)
        if not self._going:
            self._going = True
            self._tick = ceil((time.monotonic() - self._began_at) / self._slot_s)
            self._board.each_beat(self._run)
        next_tick = self._tick + (slot - self._tick) % len(self._slots)
        microphone.began_at = self._began_at + next_tick * self._slot_s - self.chunk_s
        return microphone

    def remove(self, microphone: Microphone, slot: int) -> None:
        if microphone in self._slots[slot]:
            self._slots[slot].remove(microphone)
            self._count(-1)
        if self._going and not any(self._slots):
            self._going = False
            self._board.no_more(self._run)

    def _count(self, change: int) -> None:
        self._open += change
        self._rounds = self._fewest_rounds * min(1 + self._open // _MANY, _SELDOM)

    def take_lateness(self) -> "array[float]":
        """Lateness (s) of every chunk sent since the last time."""
        late_s, self.late_s = self.late_s, array("d")
        return late_s

    def _run(self) -> None:
        """Send and hear what is due, a slot after the other."""
        for _ in range(_MOST_AT_ONCE):
            due_at = self._began_at + self._tick * self._slot_s
            if due_at > time.monotonic():
                break
            slot = self._slots[self._tick % len(self._slots)]
            self._tick += 1
            if slot:
                self._send(slot, due_at)
            if self._due and (len(self._due) >= _HEARD_TOGETHER or self._tick % _HEARD_WITHIN == 0):
                due, self._due = self._due, []
                self._hear(due)

    def _send(self, slot: list[Microphone], due_at: float) -> None:
        now = time.monotonic
        late = self.late_s.append
        for microphone in tuple(slot):  # one may be closed by what is called here
            at = now()
            late(at - due_at)
            if due_at < microphone.clip_due_at:
                chunk = microphone.silence
            else:
                clip = microphone.clip
                assert clip is not None
                chunk = clip.next(due_at, at)
                if clip.over:
                    microphone.clip_due_at = _NEVER
            try:
                if microphone.encode is not None:
                    chunk = microphone.encode(chunk)
                microphone.send(chunk)
            except OSError as error:
                microphone.line.broke(error)
            except Exception as error:  # a bug of ours must not silence the others
                microphone.call.failed(error)
        # A call is heard every few rounds: what it takes to hear it is then fetched once for several chunks, and the
        # gate sees as many at a time.
        turn = self._tick // len(self._slots) % self._rounds
        calls = slot[turn :: self._rounds]
        self._due += [mic.call for mic in calls if mic.line.came or mic.line.gone is not None]
