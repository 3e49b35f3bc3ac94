"""One full-duplex session: wait for the handshake, speak while the agent speaks, hear it out. Knows nothing of Locust.

It is a call (call.py) whose audio is compressed, whose server answers while it listens, and whose lag is measured.
"""

import time
from array import array
from typing import TYPE_CHECKING, ClassVar

from gevent.event import Event as Signal

from workers.audio import opus
from workers.audio.ear import EarLost
from workers.audio.inflow import Inflow
from workers.audio.stretches import Stretch
from workers.call import Call
from workers.calling import events_of
from workers.clients.inbox import Arrival
from workers.clients.line import Line
from workers.duplex_calling import DuplexCalling, Script
from workers.events import Event, Handshake, Text, Unknown
from workers.failures import TurnFailed
from workers.iterations import Iteration
from workers.repertoire import Query
from workers.samples.measure import Row
from workers.samples.measure_call import CallTurn
from workers.samples.measure_duplex import DuplexTurn
from workers.samples.schema import names

if TYPE_CHECKING:
    from workers.duplex import DuplexUser
    from workers.run import LiveRun

_EAR_BUSY_S = 10.0  # an ear that is further behind is of no use, and the server is not to blame
_COLUMNS = names("sessions")


class DuplexCall(Call):
    """One session of one user, up until the `with` block is left."""

    _turn_class: ClassVar[type[CallTurn]] = DuplexTurn
    _listens_on: ClassVar[bool] = True
    _calling: DuplexCalling
    _user: "DuplexUser"

    def __init__(
        self,
        user: "DuplexUser",
        run: "LiveRun",
        session: str,
        stream_id: str,
        *,
        iteration: Iteration,
        begin_with: tuple[Script, Query],
    ) -> None:
        """begin_with: the first query, and the recording it is from, whose others follow."""
        super().__init__(user, run, run.duplex, session, stream_id)
        self._iteration = iteration
        self._script, query = begin_with
        self._next_query = self._script.queries.index(query)
        self._target = self._calling.next_host()
        self.host = self._target.url.netloc
        self.inflow = Inflow()
        self.stream = self._calling.new_stream()
        self.decoded = iteration.mode == "interruption" or run.rng.random() < run.scenario.decode_share
        self.asked_of_ear = self.answered_by_ear = 0  # messages
        self._ear_answered = Signal()
        self._stream_began_at = self._connected_at = self._first_token_at = 0.0
        self._local_address: tuple[str, int] | None = None
        self._unknown = 0
        self._ended_at = 0.0
        self._part_ends_at = run.dealing.ends_at(iteration)

    # ---- being up

    def _set_up(self) -> None:
        where = self._calling.address(self._target, self._script.prompt)
        calling, scenario = self._calling, self._scenario
        self.line = Line.connect(where, self.stream_id, scenario.connect_timeout_s, calling.board, waits=True)
        self._connected_at, self._local_address = self.line.ready_at, self.line.local_address
        try:
            early = self._await_handshake(self._connected_at + scenario.setup_timeout_s, self._part_ends_at)
        except BaseException:
            self.line.close()
            raise
        self.line.hear_in_bulk()
        calling.take(self, early)

    def _await_handshake(self, until: float, part_ends_at: float) -> list[tuple[Event, Arrival]]:
        """Wait behind the server's lock and its prompts; what came beside the handshake."""
        line = self.line
        early: list[tuple[Event, Arrival]] = []
        while not self.ready_at:
            if not line.await_more(min(until, part_ends_at)):
                if part_ends_at < until:
                    raise TurnFailed("cut", "part_ended", "the part was over before the server shook hands")
                seconds = self._scenario.setup_timeout_s
                raise TurnFailed(
                    "timed_out",
                    "handshake_timeout",
                    f"accepted, but no handshake within setup_timeout_s ({seconds:g} s): such a server serves one"
                    " session at a time, and another may have it; name more --servers, or wait longer",
                )
            for event, arrival in events_of(line, self.codec):
                if isinstance(event, Handshake):
                    self.ready_at = self.ready_at or arrival.at
                else:
                    early.append((event, arrival))
            line.came.empty()
            if line.gone is not None and not self.ready_at:
                raise _dropped(line.gone)
        return early

    def _opened(self) -> None:
        self._stream_began_at = self._microphone.began_at

    def hang_up(self) -> None:
        if self.up:
            self._ended_at = time.monotonic()
            self._calling.forget(self.stream)
        super().hang_up()

    @property
    def begun(self) -> bool:
        """Whether there is a session to tell of: one that waits behind the lock is one."""
        return super().begun or bool(self._connected_at)

    # ---- in the hub

    def failed(self, error: Exception) -> None:
        """The ear was lost, which is no failure of the server's; or a bug of ours."""
        if not isinstance(error, EarLost):
            super().failed(error)
        elif self.up and self.line.gone is None:
            line = f"our own hearing process was lost ({error}); what it had not decoded nobody heard"
            self.line.gone = TurnFailed("cut", "ear_lost", line)

    def note(self, event: Event, arrival: Arrival) -> None:
        """Something other than audio came."""
        if isinstance(event, Text):
            self._note_text(arrival.at)
        elif isinstance(event, Unknown):
            self._unknown += 1
        elif not isinstance(event, Handshake):
            super().note(event, arrival)

    def _note_text(self, at: float) -> None:
        self._first_token_at = self._first_token_at or at
        turn = self._turn
        if isinstance(turn, DuplexTurn) and not turn.ended_at and at >= turn.user_offset_at:
            turn.token_at.append(at)
            if not self.decoded and len(turn.token_at) == 1:
                self._changed.set()

    def came(self, at: float, samples: int) -> None:
        """A message with so many samples of audio came."""
        if samples > 0:
            self.inflow.came(at, samples / opus.RATE, self._sent_s(at))

    def heard(self) -> None:
        """The ear has answered."""
        self._ear_answered.set()
        if self.line.gone is not None:
            self._changed.set()

    def _sent_s(self, at: float) -> float:
        """Audio sent by then: microphones are punctual, or the worker's rows say that they were not."""
        if not self._stream_began_at:
            return 0.0
        return max(0, int((at - self._stream_began_at) / opus.CHUNK_S)) * opus.CHUNK_S

    # ---- a turn

    def _query(self, name: str | None) -> Query:
        if name is not None:
            return super()._query(name)
        self._next_query += 1
        return self._script.queries[(self._next_query - 1) % len(self._script.queries)]

    def _new_turn(self, name: str, intended_at: float) -> CallTurn:
        turn = super()._new_turn(name, intended_at)
        assert isinstance(turn, DuplexTurn)
        turn.host, turn.voice = self.host, self._calling.voice
        turn.mode, turn.iteration = self._iteration
        turn.decoded = self.decoded
        return turn

    def _speak(self, query: Query, begins_at: float, barge_in: Stretch | None = None) -> CallTurn:
        turn = super()._speak(query, begins_at, barge_in)
        assert isinstance(turn, DuplexTurn)
        turn.stream_began_at = self._stream_began_at
        began_at = turn.user_onset_at - query.onset_s
        turn.pauses = tuple((began_at + begin, began_at + end) for begin, end in query.pauses)
        return turn

    def _hear(self, turn: CallTurn, until_spoken_s: float | None) -> bool:
        assert isinstance(turn, DuplexTurn)
        try:
            return super()._hear(turn, until_spoken_s)
        finally:
            turn.stretches = list(self.hearing.stretches)
            answer = turn.answer
            turn.lag_s = self.inflow.lag_at_instant(answer.onset_arrival_at if answer else turn.ended_at)
            if not self.decoded and turn.token_at:
                self._agent_offset_at = turn.token_at[-1]

    def _await_answer(self, turn: CallTurn, until_spoken_s: float | None) -> bool:
        assert isinstance(turn, DuplexTurn)
        if self.decoded:
            return super()._await_answer(turn, until_spoken_s)
        self._await_text(turn.token_at, turn.user_offset_at)
        return False

    def _await_text(self, token_at: "array[float]", user_offset_at: float) -> None:
        """Of a session that nobody hears: its answer lasts from its first piece of text to its last."""
        scenario = self._scenario
        while True:
            if self.line.came:
                self._calling.hear_now(self)
            self._raise_if_gone()
            now = time.monotonic()
            until = token_at[-1] + scenario.answer_end_s if token_at else user_offset_at + scenario.answer_timeout_s
            if now >= until:
                break
            if token_at and now >= token_at[0] + scenario.longest_answer_s:
                line = f"text went on coming for longest_answer_s ({scenario.longest_answer_s:g} s)"
                raise TurnFailed("timed_out", "never_stopped", line)
            self._wait_until(until)
        if not token_at:
            line = (
                f"no text within answer_timeout_s ({scenario.answer_timeout_s:g} s), in a session that is not decoded"
            )
            raise TurnFailed("timed_out", "no_text_in_time", line)

    def _hear_until_now(self) -> float:
        """The same, with what the ear has still to decode; where nothing has come for long the line is gone."""
        now = super()._hear_until_now()
        asked = self.asked_of_ear  # what comes while we wait is for the next look
        while self.answered_by_ear < asked and time.monotonic() < now + _EAR_BUSY_S:
            self._ear_answered.clear()
            self._ear_answered.wait(_EAR_BUSY_S)
        if self.answered_by_ear < asked:
            self.failed(EarLost(f"it is more than {_EAR_BUSY_S:g} s behind"))
        elif self._has_stopped(now) and self.line.gone is None:
            line = f"no audio, not even silence, for answer_timeout_s ({self._scenario.answer_timeout_s:g} s)"
            self.line.gone = TurnFailed("timed_out", "stopped_sending", line)  # and with it the session
        return now

    def _has_stopped(self, now: float) -> bool:
        last_at = self.inflow.last_at
        return bool(last_at) and now - last_at > self._scenario.answer_timeout_s

    def _quiet_at(self, not_before: float) -> float:
        """Such an agent sends its silence, too: where nothing comes, nobody knows yet whether it is quiet."""
        quiet_at, now = super()._quiet_at(not_before), time.monotonic()
        if now < quiet_at or self.hearing.playhead >= quiet_at or self._has_stopped(now):
            return quiet_at
        return now + opus.CHUNK_S

    @property
    def _heard_nothing(self) -> bool:
        return not self.inflow.first_at and self.answered_by_ear == self.asked_of_ear

    def _raise_if_gone(self) -> None:
        gone = self.line.gone
        if gone is not None and gone.kind == "ws_closed_1000" and self._heard_nothing:
            line = "the server closed with 1000 (normal) without any audio: it may have missed OpusHead; see its log"
            self.line.gone = TurnFailed("disconnected", "closed_without_audio", line)
        super()._raise_if_gone()

    # ---- the record

    def row(self) -> Row:
        """Row of `sessions`, in the schema's order."""
        known = dict(zip(_COLUMNS, super().row(), strict=False))
        inflow, ended_at = self.inflow, self._ended_at or time.monotonic()
        lag = inflow.lag()
        between_p50_s, between_p99_s = inflow.interarrival_s()
        known |= {
            "host": self.host,
            "mode": self._iteration.mode,
            "voice": self._calling.voice,
            "decoded": self.decoded,
            "connected_at": self._connected_at or None,
            "setup_s": self.ready_at - self._started_at if self.ready_at else None,
            "first_token_at": self._first_token_at or None,
            "first_audio_at": inflow.first_at or None,
            "sent_s": self._sent_s(ended_at),
            "received_s": inflow.received_s,
            "unknown_messages": self._unknown,
            "lag_p50_s": lag.p50_s,
            "lag_p99_s": lag.p99_s,
            "lag_max_s": lag.max_s,
            "lag_growth_s_per_min": lag.growth_s_per_min,
            "lag_at": inflow.lag_at.tolist(),
            "lag_series_s": inflow.lag_series_s.tolist(),
            "interarrival_p50_s": between_p50_s,
            "interarrival_p99_s": between_p99_s,
            "client_stalls": inflow.playout.stalls,
            "client_stalled_s": inflow.playout.stalled_s,
            "client_dropped_s": inflow.playout.dropped_s,
        }
        if not self.ready_at and self._ended_by == "user":
            known["ended_by"] = "run_ended"  # it was still waiting
        if self._local_address is not None:
            host, port = self._local_address
            known |= {"local_address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "local_port": port}
        return [known.get(name) for name in _COLUMNS]


def _dropped(gone: TurnFailed) -> TurnFailed:
    """The connection ended before the handshake."""
    line = f"before the server's handshake: {gone}"
    if gone.kind == "ws_closed_1006":
        line = (
            "the server closed the connection without a close message (1006) before its handshake: it may not know the"
            " voice_prompt, or not take the text_prompt; check its log"
        )
    return TurnFailed(gone.outcome, gone.kind, line)
