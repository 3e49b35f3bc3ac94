"""Hold one call: hear the caller, take turns, yield when interrupted. Knows nothing of HTTP, engines or models.

A turn begins when the caller falls silent; its answer is made by one task and sent by one Playback. At most one turn
is being answered. A caller who speaks during it interrupts it, unless a fault says that it does not yield: then the
new turn waits for its end.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from gpu_server import agent_rtvi
from gpu_server.agent_answer import Answering, GivenUp, Parts
from gpu_server.agent_log import CallLog
from gpu_server.agent_turn import GREETING, Turn
from gpu_server.agent_wire import Undecodable, read_message, unpack_wav, write_interruption, write_message
from gpu_server.faults import Fault
from gpu_server.playback import Mishap, Outlet, Playback
from gpu_server.reply import Said
from gpu_server.trace import AgentTurn, TurnOutcome
from gpu_server.voice_activity import SAMPLE_RATE, SpeechStarted, VoiceActivity
from gpu_server.websocket import Connection

UNSUPPORTED, FAILED = 1003, 1011  # WebSocket close codes
_BEFORE_SPEECH_BYTES = round(0.4 * SAMPLE_RATE) * 2  # kept from before speech was certain
_LONGEST_SPEECH_BYTES = 60 * SAMPLE_RATE * 2
_REMEMBERED = 40
_GARBAGE = b"\xff\xff\xff\xff"


class Ledger:
    """What a call reports to whoever counts calls."""

    def __init__(
        self,
        draw: Callable[[], tuple[Fault, ...]],
        record: Callable[[AgentTurn], None],
        ignored: Callable[[str], None],
        ended: Callable[[], None],
    ) -> None:
        self.draw = draw
        self.record = record
        self.ignored = ignored
        self.ended = ended


class Agent:
    """One call, from its handshake to its end. A websocket.Listener."""

    def __init__(self, parts: Parts, stream_id: str, log: CallLog, ledger: Ledger) -> None:
        settings = parts.settings
        self._parts = parts
        self._stream_id = stream_id
        self._log = log
        self._ledger = ledger
        self._connection: Connection | None = None
        self._vad = VoiceActivity(settings.vad_start_s, settings.vad_stop_s, settings.vad)
        self._outlet = Outlet(
            parts.ticker,
            self._send_audio,
            bytes_per_s=2 * settings.output_rate,
            chunk_bytes=2 * round(settings.chunk_s * settings.output_rate),
        )
        self._history: list[Said] = []
        self._speech = bytearray()  # of the caller, where somebody is to recognize it
        self._turns = 0
        self._interruptions = 0
        self._ignored = 0
        self._coming: Turn | None = None  # the caller speaks
        self._waiting: tuple[Turn, bytes] | None = None
        self._current: Turn | None = None
        self._playback: Playback | None = None
        self._current_speech = b""
        self._task: asyncio.Task[None] | None = None

    # What the connection tells

    def opened(self, connection: Connection) -> None:
        self._connection = connection
        self._log.accepted()
        greeting = self._parts.settings.greeting
        if greeting:
            turn = Turn(self._stream_id, GREETING)
            self._begin(turn, lambda answering: answering.greet(greeting))

    def message(self, data: bytes, at: float) -> None:
        try:
            incoming = read_message(data)
            if incoming.kind == "audio":
                audio, rate, channels = incoming.audio, incoming.sample_rate, incoming.channels
                if audio.startswith(b"RIFF"):
                    audio, rate, channels = unpack_wav(audio)
                self._hear(audio, rate, channels, at)
                return
        except Undecodable:
            self._ignore("undecodable")
            return
        if incoming.kind == "message" and (request := agent_rtvi.client_ready_id(incoming.data)) is not None:
            self._tell(agent_rtvi.bot_ready(request))
        else:
            self._ignore(incoming.kind or "unknown")

    def text(self) -> None:
        self._ignore("text_message")
        self._close(UNSUPPORTED, "text message; this dialect is binary protobuf")

    def closed(self, by_client: bool) -> None:
        outcome: TurnOutcome = "client_gone" if by_client else "failed"
        self._coming = None
        self._drop_waiting(outcome)
        if self._current is not None:
            self._finish(self._current, outcome)
        self._connection = None
        self._log.gone(self._ignored)
        self._ledger.ended()

    # Hearing

    def _hear(self, audio: bytes, rate: int, channels: int, at: float) -> None:
        if rate not in (0, SAMPLE_RATE) or channels > 1:
            reason = f"audio of {rate} Hz and {channels} channels; this agent hears {SAMPLE_RATE} Hz mono s16le"
            self._close(UNSUPPORTED, reason)
            return
        if len(audio) % 2:
            self._ignore("odd_byte")
            audio = audio[:-1]
        if self._parts.recognizer is not None:
            self._keep(audio)
        for change in self._vad.hear(audio, at):
            if isinstance(change, SpeechStarted):
                self._user_started(change.at, at)
            else:
                self._user_stopped(change.last_voiced_at, at)

    def _keep(self, audio: bytes) -> None:
        speech = self._speech
        speech += audio
        limit = _LONGEST_SPEECH_BYTES if self._coming is not None else _BEFORE_SPEECH_BYTES
        if len(speech) > limit:
            del speech[:-limit]

    def _user_started(self, first_voiced_at: float, at: float) -> None:
        self._log.user_started()
        self._tell(agent_rtvi.event("user-started-speaking"))
        self._interruptions += 1
        if self._parts.settings.rtvi and self._connection is not None:
            self._connection.send(write_interruption(self._interruptions))
        if self._waiting is not None:
            self._speech[:0] = self._waiting[1]
            self._drop_waiting("interrupted", at)
        current = self._current
        if current is not None and current.fault("no_yield") is not None:
            current.toll.add("no_yield")
        elif current is not None:
            current.interrupted_at = at
            self._finish(current, "interrupted")
        turn = self._coming = Turn(self._stream_id, self._turns, self._ledger.draw())
        self._turns += 1
        if (early := turn.fault("early")) is not None:
            self._parts.ticker.call_at(first_voiced_at + early.s, lambda _now: self._talk_over(turn))

    def _talk_over(self, turn: Turn) -> None:
        """Answer although the caller still speaks: the `early` fault."""
        if self._coming is not turn or self._current is not None or self._connection is None:
            return
        self._coming = None
        turn.toll.add("early")
        turn.answer_asked_at = time.monotonic()
        self._begin(turn, lambda answering: answering.answer(b"", self._history), early=True)

    def _user_stopped(self, last_voiced_at: float, at: float) -> None:
        self._log.user_stopped()
        self._tell(agent_rtvi.event("user-stopped-speaking"))
        turn, self._coming = self._coming, None
        speech = bytes(self._speech)
        self._speech.clear()
        spoken_over = turn is None and self._current is not None
        subject = self._current if spoken_over else turn
        if subject is None:
            return
        if subject.end_of_speech_at is None:
            subject.user_last_voiced_received_at = last_voiced_at
            subject.end_of_speech_at = at
        if turn is None:
            return
        turn.answer_asked_at = at
        if self._current is None:
            self._answer(turn, speech)
        else:
            self._waiting = (turn, speech)

    # Answering

    def _answer(self, turn: Turn, speech: bytes) -> None:
        del self._history[:-_REMEMBERED]
        turn.answer_asked_at = time.monotonic()  # what waited for an answer under way was not being recognised
        self._begin(turn, lambda answering: answering.answer(speech, self._history), speech=speech)

    def _begin(
        self,
        turn: Turn,
        work: Callable[[Answering], Coroutine[Any, Any, None]],
        speech: bytes = b"",
        early: bool = False,
    ) -> None:
        stall, cut = turn.fault("stall"), turn.fault("cut")
        mishap = Mishap(
            stall_after_s=None if stall is None else stall.after_s,
            stall_s=0.0 if stall is None else stall.s,
            cut_after_s=None if cut is None else cut.after_s,
        )
        playback = Playback(self._outlet, mishap, lambda: self._note_first(turn), lambda: self._note_end(turn))
        answering = Answering(turn, self._parts, self._log, self._tell, playback, early=early)
        self._current, self._playback, self._current_speech = turn, playback, speech
        self._task = asyncio.get_running_loop().create_task(self._run(turn, lambda: work(answering)))

    async def _run(self, turn: Turn, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except GivenUp as given:
            turn.toll.add(given.fault)
            self._finish(turn, given.outcome)
            if given.fault == "error":
                self._close(FAILED, str(given))
            elif given.fault == "garbage" and self._connection is not None:
                self._connection.send(_GARBAGE)
        except Exception as error:
            print(f"gpu_server: call {self._stream_id} failed: {type(error).__name__}: {error}", file=sys.stderr)
            self._log.failed(error)
            self._finish(turn, "failed")
            self._close(FAILED, f"{type(error).__name__}: {error}")

    def _note_first(self, turn: Turn) -> None:
        self._log.bot_started()
        self._tell(agent_rtvi.event("bot-started-speaking"))
        # Stamped here and nowhere earlier: clients hold this against the kernel's receive stamp.
        turn.first_audio_at = time.monotonic()

    def _note_end(self, turn: Turn) -> None:
        assert self._playback is not None
        if self._playback.was_cut:
            turn.toll.add("cut")
            self._finish(turn, "failed")
            if self._connection is not None:
                self._connection.cut()
        else:
            self._finish(turn, "ok" if self._playback.sent_bytes else "failed")

    def _finish(self, turn: Turn, outcome: TurnOutcome) -> None:
        """Write the turn down, whatever became of it; then begin the one that waits."""
        if turn.outcome is not None:
            return
        turn.outcome, turn.finished_at = outcome, time.monotonic()
        if turn is self._current:
            self._leave(turn)
        if turn.first_audio_at is not None:
            self._log.bot_stopped()
            self._tell(agent_rtvi.event("bot-stopped-speaking"))
        self._ledger.record(turn.row())
        if self._current is None and self._waiting is not None:
            (following, speech), self._waiting = self._waiting, None
            self._answer(following, speech)

    def _leave(self, turn: Turn) -> None:
        """Stop working on the current turn."""
        assert self._playback is not None
        assert self._task is not None
        self._playback.stop()
        turn.audio_s, turn.last_audio_at = self._playback.sent_s, self._playback.last_audio_at
        if self._playback.stalled_s is not None:
            turn.toll.add("stall", self._playback.stalled_s)
        if turn.outcome == "interrupted" and turn.first_audio_at is None:
            # A pause for thought, not a turn of its own: what was said before it belongs to what comes.
            self._speech[:0] = self._current_speech
        if self._task is not asyncio.current_task():
            self._task.cancel()
        self._current = self._playback = self._task = None

    def _drop_waiting(self, outcome: TurnOutcome, at: float | None = None) -> None:
        if self._waiting is not None:
            (turn, _), self._waiting = self._waiting, None
            turn.interrupted_at = at
            self._finish(turn, outcome)

    # Sending

    def _send_audio(self, pcm: bytes) -> None:
        if self._connection is not None:
            self._connection.send(self._parts.writer.message(pcm))

    def _tell(self, rtvi: str) -> None:
        if self._parts.settings.rtvi and self._connection is not None:
            self._connection.send(write_message(rtvi))

    def _ignore(self, kind: str) -> None:
        self._ignored += 1
        self._ledger.ignored(kind)

    def _close(self, code: int, reason: str) -> None:
        if self._connection is not None:
            self._connection.close(code, reason)
