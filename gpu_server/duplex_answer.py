"""Hold one answer of a full-duplex session: its samples, its words, and where in the stream they went.

Knows nothing of how audio is made, of sockets or of who interrupts.
"""

import asyncio
from dataclasses import dataclass, field

import numpy as np

from gpu_server.duplex_opus import CHUNK, RATE
from gpu_server.faults import Fault, Toll
from gpu_server.trace import DuplexAnswer, TurnOutcome

AUDIBLE = 328  # amplitude: -40 dBFS
_AHEAD = 10 * RATE  # samples made and not yet sent; whoever makes them waits beyond that
_NOT_UTF8 = b" \xff\xfe"


@dataclass(slots=True)
class _Sentence:
    """One sentence; positions are samples of the answer."""

    words: list[str]
    begin: int
    end: int | None = None  # None until all of it is made
    onset: int | None = None
    told: int = 0  # words

    def due(self, position: int) -> list[str]:
        """Words to be told before a position is reached: the first with the onset, word i of n at i/n of the audio.

        The second and later ones wait until it is known how long the audio is.
        """
        due = []
        while self.told < len(self.words):
            at = self.onset if self.told == 0 else self._place(self.told)
            if at is None or at >= position:
                break
            due.append(self.words[self.told])
            self.told += 1
        return due

    def _place(self, word: int) -> int | None:
        return None if self.end is None else self.begin + word * (self.end - self.begin) // len(self.words)


class Speech:
    """The samples of an answer as they are made and taken, chunk by chunk."""

    def __init__(self) -> None:
        self.complete = False
        self.taken = 0  # samples
        self._audio = bytearray()
        self._made = 0
        self._sentences: list[_Sentence] = []
        self._room = asyncio.Event()
        self._room.set()

    @property
    def ready(self) -> bool:
        left = self._made - self.taken
        return left >= CHUNK or (self.complete and left > 0)

    @property
    def over(self) -> bool:
        return self.complete and self.taken >= self._made

    def begin(self, sentence: str) -> None:
        self._sentences.append(_Sentence(sentence.split(), self._made))

    async def feed(self, pcm: bytes) -> None:
        """Take the next samples (s16le); waits while far more is at hand than can be sent soon."""
        if self._sentences and self._sentences[-1].onset is None and (onset := _audible(pcm)) is not None:
            self._sentences[-1].onset = self._made + onset[0]
        self._audio += pcm
        self._made += len(pcm) // 2
        if self._made - self.taken > _AHEAD:
            self._room.clear()
        await self._room.wait()

    def end(self) -> None:
        """The sentence is made."""
        sentence = self._sentences[-1]
        sentence.end = self._made
        if sentence.onset is None:  # inaudible throughout
            sentence.onset = sentence.begin

    def take(self) -> tuple[bytes, list[str]]:
        """The next chunk, filled up with silence at the end, and the words that belong to it."""
        chunk = bytes(self._audio[: 2 * CHUNK])
        del self._audio[: 2 * CHUNK]
        self.taken += len(chunk) // 2
        if self._made - self.taken < _AHEAD // 2:
            self._room.set()
        words = [word for sentence in self._sentences for word in sentence.due(self.taken)]
        return chunk.ljust(2 * CHUNK, b"\0"), words


@dataclass(slots=True)
class Answer:
    """One turn's facts so far. Instants are monotonic seconds, None until they are reached."""

    session: int
    number: int
    faults: tuple[Fault, ...]
    speech: Speech = field(default_factory=Speech)
    early_at: int | None = None  # input position in samples from which on it speaks unasked
    held_until: int | None = None  # output position, by the `delay` fault
    stalled: bool = False
    end_of_speech: int | None = None  # positions in samples
    onset: int | None = None
    offset: int | None = None
    onset_sent_at: float | None = None
    first_piece_at: float | None = None
    last_piece_at: float | None = None
    pieces: int = 0
    words: list[str] = field(default_factory=list)
    interrupted: int | None = None
    interrupted_at: float | None = None
    finished_at: float | None = None
    outcome: TurnOutcome | None = None
    toll: Toll = field(default_factory=Toll)

    def fault(self, kind: str) -> Fault | None:
        """The fault of this kind that hits this answer, if one does."""
        return next((fault for fault in self.faults if fault.kind == kind), None)

    def place(self, pcm: bytes, position: int) -> None:
        """Note where in the output a chunk of it goes."""
        if (found := _audible(pcm)) is None:
            return
        if self.onset is None:
            self.onset = position + found[0]
        self.offset = position + found[1] + 1

    def note_written(self, position: int, pieces: int, now: float) -> None:
        """The chunk that begins at an output position, and with it so many pieces of text, are about to be written."""
        if self.onset_sent_at is None and self.onset is not None and self.onset >= position:
            self.onset_sent_at = now
        if pieces:
            self.first_piece_at = self.first_piece_at or now
            self.last_piece_at = now
            self.pieces += pieces

    def piece(self, word: str) -> bytes:
        """A word as it goes over the wire; the second one spoilt where a fault says so."""
        self.words.append(word)
        if len(self.words) == 2 and self.fault("bad_text") is not None:
            self.toll.add("bad_text")
            return _NOT_UTF8
        return f" {word}".encode()

    def row(self) -> DuplexAnswer:
        assert self.finished_at is not None
        assert self.outcome is not None
        onset_at = None
        if self.onset_sent_at is not None and self.onset is not None:
            onset_at = self.onset_sent_at + self.onset % CHUNK / RATE
        return DuplexAnswer(
            duplex_session=self.session,
            duplex_answer=self.number,
            end_of_speech_position_s=_seconds(self.end_of_speech),
            onset_position_s=_seconds(self.onset),
            onset_sent_at=self.onset_sent_at,
            onset_at=onset_at,
            offset_position_s=_seconds(self.offset),
            first_piece_at=self.first_piece_at,
            last_piece_at=self.last_piece_at,
            pieces=self.pieces,
            text=" ".join(self.words),
            interrupted_position_s=_seconds(self.interrupted),
            interrupted_at=self.interrupted_at,
            finished_at=self.finished_at,
            audio_s=self.speech.taken / RATE,
            outcome=self.outcome,
            fault=self.toll.names,
            fault_s=self.toll.seconds,
        )


def _audible(pcm: bytes) -> tuple[int, int] | None:
    """The first and the last sample of at least AUDIBLE."""
    loud = np.flatnonzero(np.abs(np.frombuffer(pcm, "<i2").astype(np.int32)) >= AUDIBLE)
    return (int(loud[0]), int(loud[-1])) if loud.size else None


def _seconds(position: int | None) -> float | None:
    return None if position is None else position / RATE
