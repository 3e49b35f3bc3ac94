"""Listen and speak at once, a chunk out for a chunk in: the scripted stand-in for a full-duplex model.

It hears when the user falls silent and answers with the next reply, spoken by the engine; it yields to a user who
speaks. All its times are positions in the stream, so that a slow server changes none of them. It understands nothing,
and knows nothing of pages, sockets or clocks but the one it stamps answers with.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
import soxr

from gpu_server.agent_voice import AgentVoice
from gpu_server.duplex_answer import Answer
from gpu_server.duplex_opus import CHUNK, RATE, SILENCE, Floats
from gpu_server.duplex_settings import DuplexSettings
from gpu_server.duplex_wire import Prompts
from gpu_server.faults import Fault
from gpu_server.pace import wait_until
from gpu_server.reply import Replier, Said, SentenceCutter
from gpu_server.trace import DuplexAnswer, TurnOutcome
from gpu_server.voice_activity import FRAME_BYTES, FRAME_S, SAMPLE_RATE, SpeechStarted, VoiceActivity

End = Literal["cut", "close", "error"]
_REMEMBERED: Final = 40
_FRAME: Final = round(FRAME_S * RATE)  # what VoiceActivity judges at a time, in samples of ours


@dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one chunk of input."""

    pcm: bytes | None = SILENCE  # s16le; None: a model that has nothing yet
    pieces: tuple[bytes, ...] = ()  # of text, UTF-8
    spoilt: bool = False  # its page is to be corrupted
    strange: bool = False  # a message of an unknown kind comes with it
    end: End | None = None  # the session ends here, and nothing is sent


class Mind(Protocol):
    """Whatever answers in a session."""

    async def prepare(self, prompts: Prompts) -> None:
        """Take the prompts in; afterwards it listens."""

    def stall_s(self) -> float:
        """For how long the next chunk is to be held, beyond what it takes."""

    def step(self, heard: Floats) -> "Step | asyncio.Future[Step]":
        """Hear 1,920 samples and say as many."""

    def note_written(self, step: Step, now: float) -> None:
        """The step is about to be written."""

    def leave(self, outcome: TurnOutcome) -> None:
        """The session is over."""


@dataclass(frozen=True, slots=True)
class Script:
    """What all scripted sessions share."""

    settings: DuplexSettings
    voice: AgentVoice
    replier: Replier
    draw: Callable[[], tuple[Fault, ...]]
    record: Callable[[DuplexAnswer], None]


class Talker:
    """One session's. A Mind."""

    def __init__(self, script: Script, session: int, fail: Callable[[Exception], None]) -> None:
        settings = script.settings
        self._script = script
        self._session = session
        self._fail = fail
        self._vad = VoiceActivity(settings.vad_start_s, settings.vad_stop_s, settings.vad)
        # Quick: what folds back from above 8 kHz makes no voice of silence, and it never holds samples back.
        self._resampler = soxr.ResampleStream(RATE, SAMPLE_RATE, 1, dtype="float32", quality="QQ")
        self._rest = b""
        self._judged = 0  # of the input, in samples
        self._written = 0  # of the output
        self._history: list[Said] = []
        self._answers = 0
        self._coming: Answer | None = None  # the user speaks
        self._waiting: Answer | None = None
        self._current: Answer | None = None
        self._task: asyncio.Task[None] | None = None

    async def prepare(self, prompts: Prompts) -> None:
        await wait_until(time.monotonic() + self._script.settings.prompt_s)

    def step(self, heard: Floats) -> Step:
        self._listen(heard)
        return self._speak()

    def leave(self, outcome: TurnOutcome) -> None:
        self._coming = None
        self._drop_waiting(outcome)
        if self._current is not None:
            self._finish(self._current, outcome)

    # Listening

    def _listen(self, heard: Floats) -> None:
        samples = self._resampler.resample_chunk(heard) * 32768
        pcm = self._rest + np.clip(np.rint(samples), -32768, 32767).astype("<i2").tobytes()
        end = len(pcm) - len(pcm) % FRAME_BYTES
        for start in range(0, end, FRAME_BYTES):
            self._judged += _FRAME
            for change in self._vad.hear(pcm[start : start + FRAME_BYTES], self._judged):
                if isinstance(change, SpeechStarted):
                    self._user_started(round(change.at) - _FRAME)
                else:
                    self._user_stopped()
        self._rest = pcm[end:]
        coming = self._coming
        if coming is not None and coming.early_at is not None and coming.early_at <= self._judged:
            self._talk_over(coming)

    def _user_started(self, first_voiced: int) -> None:
        self._drop_waiting("interrupted")
        current = self._current
        if current is not None and current.fault("no_yield") is not None:
            if "no_yield" not in current.toll.kinds:
                current.toll.add("no_yield")
        elif current is not None:
            current.interrupted, current.interrupted_at = self._judged, time.monotonic()
            self._finish(current, "interrupted")
        answer = self._coming = Answer(self._session, self._answers, self._script.draw())
        self._answers += 1
        if (early := answer.fault("early")) is not None:
            answer.early_at = first_voiced + round(early.s * RATE)

    def _talk_over(self, answer: Answer) -> None:
        """Answer although the user still speaks: the `early` fault."""
        if self._current is None:
            self._coming = None
            answer.toll.add("early")
            self._begin(answer)

    def _user_stopped(self) -> None:
        answer, self._coming = self._coming, None
        if answer is None:  # it is being given already
            if self._current is not None and self._current.end_of_speech is None:
                self._current.end_of_speech = self._judged
            return
        answer.end_of_speech = self._judged
        if self._current is None:
            self._begin(answer)
        else:
            self._waiting = answer

    # Answering

    def _begin(self, answer: Answer) -> None:
        self._current = answer
        if answer.fault("mute") is not None:
            answer.toll.add("mute")
            self._finish(answer, "mute")
        elif answer.fault("error") is None and answer.fault("garbage") is None:
            self._task = asyncio.get_running_loop().create_task(self._make(answer))

    async def _make(self, answer: Answer) -> None:
        try:
            if (silence := answer.fault("silence")) is not None:
                samples = round(silence.s * RATE)
                answer.toll.add("silence", samples / RATE)
                await answer.speech.feed(bytes(2 * samples))
            self._history.append(Said("user", "(inaudible)"))
            del self._history[:-_REMEMBERED]
            cutter, pieces = SentenceCutter(), []
            try:
                async with aclosing(self._script.replier.stream(answer.number, self._history)) as stream:
                    async for piece in stream:
                        pieces.append(piece)
                        for sentence in cutter.feed(piece):
                            await self._say(answer, sentence)
                for sentence in cutter.finish():
                    await self._say(answer, sentence)
            finally:
                self._history.append(Said("assistant", "".join(pieces)))
            answer.speech.complete = True
            if answer.speech.over:  # nothing to say
                self._finish(answer, "failed")
        except Exception as error:
            self._finish(answer, "failed")
            self._fail(error)

    async def _say(self, answer: Answer, sentence: str) -> None:
        answer.speech.begin(sentence)
        async with aclosing(self._script.voice.speak(sentence)) as made:
            async for pcm in made:
                await answer.speech.feed(pcm)
        answer.speech.end()

    # Speaking

    def stall_s(self) -> float:
        answer = self._current
        if answer is None or answer.stalled or (stall := answer.fault("stall")) is None:
            return 0.0
        if answer.speech.taken < stall.after_s * RATE:
            return 0.0
        answer.stalled = True
        answer.toll.add("stall", stall.s)
        return stall.s

    def _speak(self) -> Step:
        answer = self._current
        if answer is None:
            return Step()
        for kind in ("error", "garbage"):
            if answer.fault(kind) is not None:
                answer.toll.add(kind)
                self._finish(answer, "failed")
                return Step(end="error") if kind == "error" else Step(spoilt=True, strange=True)
        ends: tuple[End, ...] = ("cut", "close")
        for end in ends:
            if (fault := answer.fault(end)) is not None and answer.speech.taken >= fault.after_s * RATE:
                answer.toll.add(end)
                self._finish(answer, "failed")
                return Step(end=end)
        if not answer.speech.ready or self._held(answer):
            return Step()
        spoilt = answer.speech.taken == CHUNK and answer.fault("bad_page") is not None
        if spoilt:
            answer.toll.add("bad_page")
        pcm, words = answer.speech.take()
        answer.place(pcm, self._written)
        return Step(pcm, tuple(answer.piece(word) for word in words), spoilt)

    def _held(self, answer: Answer) -> bool:
        """Whether the `delay` fault holds its first chunk: for whole chunks, from when it was ready."""
        if (delay := answer.fault("delay")) is None or answer.speech.taken:
            return False
        if answer.held_until is None:
            chunks = math.ceil(delay.s * RATE / CHUNK)
            answer.held_until = self._written + chunks * CHUNK
            answer.toll.add("delay", chunks * CHUNK / RATE)
        return self._written < answer.held_until

    def note_written(self, step: Step, now: float) -> None:
        answer = self._current
        if answer is not None:
            answer.note_written(self._written, len(step.pieces), now)
        self._written += CHUNK
        if answer is not None and answer.speech.over:
            self._finish(answer, "ok")

    def _finish(self, answer: Answer, outcome: TurnOutcome) -> None:
        """Write the answer down, whatever became of it; then begin the one that waits."""
        if answer.outcome is not None:
            return
        answer.outcome, answer.finished_at = outcome, time.monotonic()
        if answer is self._current:
            self._current = None
            if self._task is not None and self._task is not asyncio.current_task():
                self._task.cancel()
            self._task = None
        self._script.record(answer.row())
        if self._current is None and self._waiting is not None:
            following, self._waiting = self._waiting, None
            self._begin(following)

    def _drop_waiting(self, outcome: TurnOutcome) -> None:
        if self._waiting is not None:
            answer, self._waiting = self._waiting, None
            self._finish(answer, outcome)
