"""Make one answer: recognize, think, speak, each stage stamped. Knows nothing of connections or of who interrupts."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

from gpu_server import agent_rtvi
from gpu_server.agent_log import CallLog
from gpu_server.agent_settings import AgentSettings, Delays
from gpu_server.agent_turn import Turn
from gpu_server.agent_voice import AgentVoice, Speech, made_ahead
from gpu_server.agent_wire import AudioWriter
from gpu_server.pace import wait_until
from gpu_server.playback import Playback
from gpu_server.recognizer import Recognizer
from gpu_server.reply import Replier, Said, SentenceCutter
from gpu_server.stages import Stage
from gpu_server.ticker import Ticker
from gpu_server.trace import TurnOutcome


@dataclass(frozen=True, slots=True)
class Parts:
    """What all calls share."""

    settings: AgentSettings
    voice: AgentVoice
    recognizer: Recognizer | None
    replier: Replier
    ticker: Ticker
    writer: AudioWriter
    stages: Mapping[str, Stage]  # asr, llm, tts


class GivenUp(Exception):
    """A fault takes the place of the answer."""

    def __init__(self, fault: str, outcome: TurnOutcome) -> None:
        super().__init__(f"injected fault: {fault}")
        self.fault = fault
        self.outcome = outcome


class Answering:
    """One turn's work. Cancel `answer` or `greet` to drop it."""

    def __init__(
        self, turn: Turn, parts: Parts, log: CallLog, tell: Callable[[str], None], playback: Playback, *, early: bool
    ) -> None:
        self._turn = turn
        self._parts = parts
        self._log = log
        self._tell = tell
        self._playback = playback
        self._early = early
        # Early means at that second: nothing is waited for.
        self._delays = Delays() if early else parts.settings.delays

    async def greet(self, text: str) -> None:
        """Say a text that needs no thought."""
        sentences: asyncio.Queue[str | None] = asyncio.Queue()
        sentences.put_nowait(text)
        sentences.put_nowait(None)
        await self._speak(sentences)

    async def answer(self, speech: bytes, history: list[Said]) -> None:
        """Answer what was said, and add both to the history. Raises GivenUp, and whatever a stage raises."""
        if not self._early:
            await self._transcribe(speech)
        history.append(Said("user", self._turn.transcript or "(inaudible)"))
        for kind in ("mute", "error", "garbage"):
            if self._turn.fault(kind) is not None:
                raise GivenUp(kind, "mute" if kind == "mute" else "failed")
        sentences: asyncio.Queue[str | None] = asyncio.Queue()
        thinking = asyncio.create_task(self._think(history, sentences))
        try:
            await self._speak(sentences)
            await thinking
        finally:
            thinking.cancel()

    async def _transcribe(self, speech: bytes) -> None:
        turn, recognizer, settings = self._turn, self._parts.recognizer, self._parts.settings
        asked_at = turn.answer_asked_at
        assert asked_at is not None
        async with self._parts.stages["asr"].slot() as turn.asr_admitted_at:
            if recognizer is not None:
                turn.transcript = await recognizer.transcribe(speech)
            await wait_until((turn.asr_admitted_at or asked_at) + self._delays.asr_s)
            turn.transcript_at = time.monotonic()
        asr_s = turn.transcript_at - asked_at
        self._log.recognized(asr_s, settings.vad_stop_s, turn.transcript)
        if turn.transcript is not None:
            timestamp = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._tell(agent_rtvi.user_transcription(turn.transcript, timestamp))
        self._tell(agent_rtvi.seconds_of("ttfb", self._log.asr, round(settings.vad_stop_s + asr_s, 6)))

    async def _think(self, history: list[Said], sentences: "asyncio.Queue[str | None]") -> None:
        """Take the reply as it streams in; hand on each sentence as soon as it is whole."""
        turn = self._turn
        asked_at = turn.transcript_at or time.monotonic()
        cutter = SentenceCutter()
        pieces: list[str] = []
        try:
            async with (
                self._parts.stages["llm"].slot() as turn.llm_admitted_at,
                aclosing(self._parts.replier.stream(max(turn.number, 0), history)) as stream,
            ):
                async for piece in stream:
                    if turn.first_token_at is None:
                        await self._note_first_token(asked_at)
                    pieces.append(piece)
                    self._tell(agent_rtvi.bot_llm_text(piece))
                    self._hand_on(cutter.feed(piece), asked_at, sentences)
            self._hand_on(cutter.finish(), asked_at, sentences)
            turn.tokens = len(pieces)
            turn.processing_s = time.monotonic() - asked_at
            self._tell(agent_rtvi.event("bot-llm-stopped"))
            prompt_words = sum(len(said.text.split()) for said in history)
            self._log.thought(prompt_words, turn.tokens, turn.processing_s)
            self._tell(agent_rtvi.tokens_of(prompt_words, turn.tokens))
            self._tell(agent_rtvi.seconds_of("processing", self._log.llm, round(turn.processing_s, 6)))
        finally:
            history.append(Said("assistant", "".join(pieces)))
            sentences.put_nowait(None)

    async def _note_first_token(self, asked_at: float) -> None:
        await wait_until((self._turn.llm_admitted_at or asked_at) + self._delays.llm_s)
        self._turn.first_token_at = time.monotonic()
        ttfb_s = self._turn.first_token_at - asked_at
        self._log.first_token(ttfb_s)
        self._tell(agent_rtvi.event("bot-llm-started"))
        self._tell(agent_rtvi.seconds_of("ttfb", self._log.llm, round(ttfb_s, 6)))

    def _hand_on(self, whole: list[str], asked_at: float, sentences: "asyncio.Queue[str | None]") -> None:
        for sentence in whole:
            if self._turn.first_sentence_at is None:
                self._turn.first_sentence_at = time.monotonic()
                self._log.first_sentence(self._turn.first_sentence_at - asked_at)
            sentences.put_nowait(sentence)

    async def _speak(self, sentences: "asyncio.Queue[str | None]") -> None:
        turn = self._turn
        while (sentence := await sentences.get()) is not None:
            asked_at = time.monotonic()
            if turn.speech_asked_at is None:
                # From the sentence itself on, so that no time falls between two stages.
                asked_at = turn.speech_asked_at = turn.first_sentence_at or asked_at
            self._log.generating(sentence)
            speech = self._made(sentence, asked_at)
            if self._parts.stages["tts"].admission is not None:
                # A slot is held while audio is made, not while it is listened to.
                speech = made_ahead(speech)
            async with aclosing(speech) as pieces:
                async for pcm in pieces:
                    await self._note_first_speech()
                    await self._playback.feed(pcm, time.monotonic())
            self._log.spoken(time.monotonic() - asked_at)
        self._playback.complete(time.monotonic())

    async def _made(self, sentence: str, asked_at: float) -> Speech:
        """A sentence's audio, no sooner than the stage has a slot and the delay is over."""
        turn = self._turn
        async with self._parts.stages["tts"].slot() as admitted_at:
            turn.tts_admitted_at = turn.tts_admitted_at or admitted_at
            async with aclosing(self._parts.voice.speak(sentence)) as pieces:
                async for pcm in pieces:
                    await wait_until((admitted_at or asked_at) + self._delays.tts_s)
                    yield pcm

    async def _note_first_speech(self) -> None:
        """Stamp the first sound of the whole answer; hold it or put silence before it where a fault says so."""
        turn = self._turn
        if turn.tts_first_audio_at is not None:
            return
        turn.tts_first_audio_at = time.monotonic()
        assert turn.speech_asked_at is not None
        ttfb_s = turn.tts_first_audio_at - turn.speech_asked_at
        self._log.first_speech(ttfb_s)
        self._tell(agent_rtvi.event("bot-tts-started"))
        self._tell(agent_rtvi.seconds_of("ttfb", self._log.tts, round(ttfb_s, 6)))
        if (delay := turn.fault("delay")) is not None:
            await wait_until(turn.tts_first_audio_at + delay.s)
            turn.toll.add("delay", time.monotonic() - turn.tts_first_audio_at)
        if (silence := turn.fault("silence")) is not None:
            samples = round(silence.s * self._parts.settings.output_rate)
            turn.toll.add("silence", samples / self._parts.settings.output_rate)
            await self._playback.feed(bytes(2 * samples), time.monotonic())
