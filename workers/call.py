"""One call: speak, listen, barge in, hang up. Knows nothing of Locust's events or of how audio travels.

The greenlet of the user who calls owns it; `note` and `lost` run in the hub. docs/metrics.md says what is measured.
"""

import time
from typing import TYPE_CHECKING, ClassVar

import gevent
from gevent.event import Event as Signal
from locust.exception import RescheduleTask, StopUser

from workers import answering
from workers.audio.pieces import samples_of
from workers.audio.stretches import Stretch
from workers.calling import Calling
from workers.clients.inbox import Arrival
from workers.clients.line import Line
from workers.clients.microphone import Spoken
from workers.clients.ticker import Call as Due
from workers.clients.websocket import frame
from workers.events import Event, Fault, Hint, Interruption, ServerFigure, Text
from workers.failures import TurnFailed
from workers.heard import HeardTurn
from workers.repertoire import Query
from workers.run import LiveRun
from workers.samples.measure import Row
from workers.samples.measure_call import CallTurn

if TYPE_CHECKING:
    from workers.conversing import CallUser

_EAR_S = 2.0  # longest wait for the ear at the end of a turn
_SILENT_SOON_S = 0.3
_NO_MASK = bytes(4)


class CallOver(RescheduleTask):
    """The call is over: Locust goes on with the user's next task, which calls again."""


class Call:
    """One call of one user, up until the `with` block is left."""

    _turn_class: ClassVar[type[CallTurn]] = CallTurn
    _listens_on: ClassVar[bool] = False  # the agent hears while it speaks

    def __init__(self, user: "CallUser", run: LiveRun, calling: Calling, session: str, stream_id: str) -> None:
        self._user, self._run, self._calling = user, run, calling
        self.session, self.stream_id = session, stream_id
        self.codec = calling.codec(stream_id)
        self._changed = Signal()
        self.hearing = calling.new_hearing(self._changed.set)
        self.line: Line
        self._scenario = run.scenario
        self._started_at = time.monotonic()
        self.ready_at = 0.0
        self._turns = self._next_query = 0
        self._turn: CallTurn | None = None
        self._spoken: Spoken
        self._saying: Query
        self._fault: Fault | None = None
        self._greeting_s = 0.0
        self._stopped_hint_at = 0.0
        self._agent_offset_at = 0.0  # of the turn before: thinking begins there
        self._owed = False  # a turn before got no answer: what comes early is that one
        self._ended_by = "user"
        self._hung_up = False

    # ---- being up

    @property
    def begun(self) -> bool:
        """Whether the `with` block was entered."""
        return bool(self.ready_at) or self._hung_up

    @property
    def up(self) -> bool:
        return bool(self.ready_at) and not self._hung_up

    def __enter__(self) -> "Call":
        turn = self._new_turn("connect", time.monotonic())
        try:
            self._set_up()
        except BaseException as error:
            if self._user.run_draining:
                raise gevent.GreenletExit from None  # the run is over: nobody can write this row any more
            self._run.begin(turn)
            self._user.unsettled = turn
            self._close_failed(turn, error)
            raise CallOver from None
        for opcode, payload in self.codec.opening():
            self.line.put(frame(opcode, payload))
        calling, shares = self._calling, self.codec.shares_audio
        silence = calling.repertoire.silence
        self._microphone = calling.booth.open(self, silence=silence, encode=None if shares else self._encode)
        calling.up += 1
        self._opened()
        return self

    def _set_up(self) -> None:
        """Connect; `ready_at` is when audio may be sent. Raises TurnFailed."""
        where, timeout_s = self._calling.target, self._scenario.connect_timeout_s
        self.line = Line.connect(where, self.stream_id, timeout_s, self._calling.board)
        self.ready_at = self.line.ready_at

    def _opened(self) -> None:
        """The microphone is open."""

    def _close_failed(self, turn: CallTurn, error: BaseException) -> None:
        if isinstance(error, TurnFailed):
            turn.fail(error.outcome, error.kind, str(error))
        elif isinstance(error, gevent.GreenletExit):
            turn.fail("cut", *self._user.cut)
        else:
            turn.fail("protocol_error", "internal_error", f"{type(error).__name__}: {error}")
            self._run.listener_errors += 1
        self._ended_by = turn.error_kind or "user"
        turn.ended_at = time.monotonic()
        self._run.over(turn)
        self._hung_up = True
        self._user.hung_up(self)
        if isinstance(error, gevent.GreenletExit):
            raise error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """End the call; harmless when it is over."""
        if not self.up:
            return
        self._hung_up = True
        self._microphone.close()
        self._calling.up -= 1
        if self._user.run_draining:
            self._ended_by = "run_ended"
        self.line.close(self.codec.closing())
        self._user.hung_up(self)

    def _encode(self, pcm: bytes) -> bytes:
        """A chunk of a dialect whose messages differ by session; with it go the answers that the server is owed."""
        hearing = self.hearing
        if hearing.rate:
            waiting = max(0.0, hearing.playhead - time.monotonic()) * hearing.rate
            for opcode, payload in self.codec.owed(hearing.bytes_received // 2 - round(waiting)):
                self.line.put(frame(opcode, payload))
        return frame(*self.codec.audio(pcm))

    # ---- in the hub

    def note(self, event: Event, arrival: Arrival) -> None:
        """Something other than audio came."""
        turn = self._turn
        if isinstance(event, Interruption):
            audible = self.hearing.clear(arrival.at)
            if turn is not None:
                turn.interruptions += 1
                turn.interrupted_at = turn.interrupted_at or arrival.at
                turn.false_barge_ins += audible and not self._user_speaks(turn, arrival.at)
            self._changed.set()
        elif isinstance(event, Hint):
            if event.kind == "agent_stopped":
                self._stopped_hint_at = arrival.at
                self.hearing.agent_said_stop()
                self._changed.set()
        elif isinstance(event, Text):
            if turn is not None and event.who == "agent" and not turn.first_token_at:
                turn.first_token_at = arrival.at
        elif isinstance(event, ServerFigure):
            number = turn.number if turn is not None else None
            self._run.record_figure(event, self.stream_id, self.session, number)
        elif isinstance(event, Fault) and self._fault is None:
            self._fault = event

    def _user_speaks(self, turn: CallTurn, at: float) -> bool:
        """Whether the user's voice can be why the server cleared its playout at `at`."""
        if not turn.user_onset_at <= at:
            return False
        # A server needs a moment to notice; but what it began to say after the user's last word, it said knowing.
        return at <= turn.user_offset_at or (
            at <= turn.user_offset_at + 1.0 and self.hearing.last_began_at < turn.user_offset_at
        )

    def lost(self) -> None:
        """The line is gone."""
        self._changed.set()

    def failed(self, error: Exception) -> None:
        """Hearing this call failed: a bug of ours."""
        self._run.listener_errors += 1
        if self.line.gone is None:
            self.line.gone = TurnFailed("protocol_error", "internal_error", f"{type(error).__name__}: {error}")
        self._changed.set()

    # ---- what a user does

    def listen(self) -> None:
        """Wait out a greeting: up to `greeting_s` for its first word, then to its end. It is no turn."""
        self._begin("listen")
        hearing, scenario = self.hearing, self._scenario
        until = time.monotonic() + scenario.greeting_s
        while True:
            self._raise_if_gone()
            first = next((stretch for stretch in hearing.stretches if stretch.by), None)
            pending = any(stretch.by is None for stretch in hearing.stretches)
            now = time.monotonic()
            if first is not None:
                quiet_at = self._quiet_at(0.0)
                if now >= min(quiet_at, first.onset_at + scenario.longest_answer_s):
                    break
                self._wait_until(quiet_at)
            elif now >= until and not pending:
                break
            else:
                self._wait_until(max(until, now + 0.1))
        if first is not None:
            self._greeting_s = hearing.last_loud_at - first.onset_at
            self._agent_offset_at = hearing.last_loud_at

    def wants_more(self) -> bool:
        """Whether the scenario's `turns_per_call` leaves another turn; 0 stands for as many as the run lasts."""
        return not self._scenario.turns_per_call or self._turns < self._scenario.turns_per_call

    def say(self, clip: str | None = None, *, pause_s: float | None = None) -> HeardTurn:
        """Speak a clip and hear the answer to its end; a failure is a turn that is not ok.

        clip: a file of the audio folder, with or without `.wav`; the next one by default. pause_s: how long after the
        agent's last word; the scenario's `think_s` by default.
        """
        query = self._query(clip)
        begins_at = self._think(pause_s)
        turn = self._speak(query, begins_at)
        self._hear(turn, None)
        return self._settled(turn, interrupted=False)

    def interrupt(self, clip: str | None = None, *, after_s: float | None = None) -> HeardTurn:
        """Ask something, and speak a clip over the answer once that has lasted `after_s` (`barge_in_after_s` of the
        scenario by default). Two turns: the one that is returned is the barge-in, or the first where its answer was too
        short to be interrupted, or failed.
        """
        scenario = self._scenario
        after_s = scenario.barge_in_after_s if after_s is None else after_s
        first, over = self._query(None), self._query(clip)
        turn = self._speak(first, self._think(None))
        still_speaking = self._hear(turn, after_s)
        heard = self._settled(turn, interrupted=still_speaking)
        if not still_speaking or turn.answer is None:
            return heard
        self._user.settle()
        voice_at = turn.answer.onset_at + after_s
        second = self._speak(over, voice_at - over.onset_s, barge_in=turn.answer)
        self._hear(second, None)
        return self._settled(second, interrupted=False)

    # ---- a turn

    def _query(self, name: str | None) -> Query:
        repertoire = self._calling.repertoire
        if name is not None:
            try:
                return repertoire.named(name)
            except KeyError as error:  # a slip in the locustfile, which every further turn would repeat
                self._run.give_up(str(error.args[0]))
                raise StopUser from None
        if not self._next_query:  # people do not all begin with the same question
            self._next_query = self._run.rng.randrange(len(repertoire.queries)) + len(repertoire.queries)
        self._next_query += 1
        return repertoire.queries[(self._next_query - 1) % len(repertoire.queries)]

    def _begin(self, what: str) -> None:
        self._user.settle()
        if self._user.run_draining:
            raise gevent.GreenletExit
        if not self.begun:
            self._run.give_up("a call is made by `with self.call() as call:`; nothing can be said before")
            raise StopUser
        if self._hung_up:
            raise CallOver(f"{what} on a call that is over")

    def _think(self, pause_s: float | None) -> float:
        """When the next turn is due: after a pause, and not while the agent goes on speaking."""
        self._begin("say")
        if pause_s is None:
            pause_s = self._run.think_s() if self._turns or self._agent_offset_at else 0.0
        due_at = max(self._agent_offset_at + pause_s, time.monotonic())
        give_up_at = due_at + self._scenario.longest_answer_s
        while True:
            self._raise_if_gone()
            now = time.monotonic()
            quiet_at = self.hearing.last_loud_at + min(pause_s, _SILENT_SOON_S)
            if now >= give_up_at or (now >= due_at and quiet_at <= now):
                break
            if self.hearing.last_loud_at > due_at - pause_s:  # the agent had more to say
                due_at = self.hearing.last_loud_at + pause_s
            self._wait_until(min(max(due_at, quiet_at, now + 0.001), give_up_at))
            if self._user.run_draining:
                raise gevent.GreenletExit
        return min(due_at, now)

    def _new_turn(self, name: str, intended_at: float) -> CallTurn:
        run = self._run
        turn = self._turn_class(
            session=self.session,
            number=self._turns,
            protocol=self._user.protocol,
            dialect=self.codec.name,
            request_id=run.new_request_id(),
            text_name=name,
            text_chars=0,
            voice="",
            phase=run.phase(intended_at),
            intended_at=intended_at,
        )
        turn.stream_id = self.stream_id
        return turn

    def _speak(self, query: Query, begins_at: float, barge_in: Stretch | None = None) -> CallTurn:
        turn = self._new_turn(query.name, begins_at)
        turn.clock, turn.ready_at, turn.connection_new = self.line.clock, self.ready_at, self._turns == 0
        self._turns += 1
        self._fault, self._stopped_hint_at = None, 0.0
        self.hearing.begin_turn(self._user.keep_audio or self._user.kept)
        self._turn = self._user.unsettled = turn
        self._run.begin(turn)
        self._saying = query
        spoken = self._spoken = self._microphone.say(query.chunks, query.last_voiced, begins_at)
        turn.user_onset_at = spoken.began_at + query.onset_s
        turn.user_offset_at = self.hearing.user_offset_at = spoken.began_at + query.offset_s
        if barge_in is not None:
            turn.barge_in, turn.barge_in_after_s = True, turn.user_onset_at - barge_in.onset_at
        return turn

    def _hear(self, turn: CallTurn, until_spoken_s: float | None) -> bool:
        """Wait for the answer and its end, or until it has lasted `until_spoken_s`; whether it then goes on."""
        goes_on = False
        try:
            goes_on = self._await_answer(turn, until_spoken_s)
            if self._fault is not None:
                raise TurnFailed("protocol_error", self._fault.kind, self._fault.line)
        except TurnFailed as failure:
            turn.fail(failure.outcome, failure.kind, str(failure))
            goes_on = False
        except gevent.GreenletExit:
            turn.fail("cut", *self._user.cut)
            raise
        except Exception as error:  # a bug of ours must not pass for an answer
            turn.fail("protocol_error", "internal_error", f"{type(error).__name__}: {error}")
            self._run.listener_errors += 1
        finally:
            answering.fill_in(turn, self.hearing, self._spoken, self._owed, self._scenario.yield_s)
            turn.agent_stopped_hint_at = self._stopped_hint_at
            self._agent_offset_at = max(turn.agent_offset_at or self.hearing.last_loud_at, turn.user_offset_at)
            turn.ended_at = time.monotonic()
            self._run.over(turn)
        if turn.outcome in ("disconnected",) or self.line.gone is not None:
            self._ended_by = turn.error_kind or "disconnected"
        self._owed = turn.answer is None
        return goes_on

    def _await_answer(self, turn: CallTurn, until_spoken_s: float | None) -> bool:
        scenario = self._scenario
        deadline = turn.user_offset_at + scenario.answer_timeout_s
        while True:
            now = self._hear_until_now()
            answer = turn.answer = answering.answer_of(turn, self.hearing, self._owed, listens_on=self._listens_on)
            self._raise_if_gone()
            if answer is None:
                pending = any(stretch.by is None for stretch in self.hearing.stretches)
                if now >= deadline + (_EAR_S if pending else 0.0):
                    if turn.user_onset_at and self.hearing.last_loud_at > now - _SILENT_SOON_S:
                        raise TurnFailed("timed_out", "never_stopped", "the agent went on with what it said before")
                    line = f"the agent said nothing within answer_timeout_s ({scenario.answer_timeout_s:g} s)"
                    raise TurnFailed("timed_out", "no_answer_in_time", line)
                self._wait_until(deadline if now < deadline else now + 0.1)
                continue
            if until_spoken_s is not None:
                chunk_s = self._calling.booth.chunk_s
                leave_at = max(answer.onset_at + until_spoken_s - chunk_s, turn.user_offset_at + chunk_s)
                if now >= leave_at and self.hearing.last_loud_at >= min(now, leave_at) - _SILENT_SOON_S:
                    answering.mark_early(turn, answer)
                    return True
            else:
                leave_at = float("inf")
            quiet_at, limit = self._quiet_at(turn.user_offset_at), answer.onset_at + scenario.longest_answer_s
            if now >= quiet_at:
                break
            if now >= limit:
                line = f"the agent went on speaking for longest_answer_s ({scenario.longest_answer_s:g} s)"
                raise TurnFailed("timed_out", "never_stopped", line)
            if leave_at <= now:  # the agent pauses: it may go on, and is interrupted then
                self._wait_until(min(quiet_at, limit, now + 0.1))
            else:
                self._wait_for_quiet(turn.user_offset_at, min(limit, leave_at))
        answering.mark_early(turn, answer)
        turn.agent_offset_at = self._careful_offset()
        return False

    def _hear_until_now(self) -> float:
        """Hear all that has come; until when that was. Hearing comes round more rarely than a short pause lasts."""
        now = time.monotonic()
        if self.line.came:
            self._calling.hear_now(self)
        return now

    def _quiet_at(self, not_before: float) -> float:
        """When the answer will have ended, if nothing more is heard."""
        return answering.quiet_at(
            self.hearing.last_loud_at, not_before, self._stopped_hint_at, self._scenario.answer_end_s
        )

    def _careful_offset(self) -> float:
        answered = Signal()
        found: list[float | None] = []

        def then(offset_at: float | None) -> None:
            found.append(offset_at)
            answered.set()

        self.hearing.ask_for_offset(then)
        answered.wait(_EAR_S)
        return (found[0] if found else None) or self.hearing.last_loud_at

    def _settled(self, turn: CallTurn, *, interrupted: bool) -> HeardTurn:
        """The turn as its user sees it. It is recorded with the next one, so that it can still be rejected."""
        pieces = self.hearing.keep or []
        if turn.answer is not None:
            begins_at = turn.answer.onset_at
            pieces = [piece for piece in pieces if piece.play_at + len(piece.pcm) / (2 * turn.sample_rate) > begins_at]
        if self._user.kept:
            self._calling.keepsakes.offer(turn, self._saying, self._spoken, self.hearing.keep or [])
        heard = samples_of(pieces) if self._user.keep_audio else samples_of([])
        if self.line.gone is not None:
            self.hang_up()
        return HeardTurn(turn, heard, interrupted)

    # ---- waiting

    def _wait_until(self, at: float) -> None:
        """Park the greenlet until something changes, or until `at`."""
        self._changed.wait(max(0.001, at - time.monotonic()))
        self._changed.clear()

    def _wait_for_quiet(self, not_before: float, until: float) -> None:
        """Park the greenlet until the answer has ended, something changes, or until `until`.

        While the agent speaks on its end moves on, too: the ticker looks after it. Waking a greenlet costs much more.
        """
        ticker = self._calling.board.ticker
        timers: list[Due] = []

        def look() -> None:
            quiet_at = self._quiet_at(not_before)
            if quiet_at <= time.monotonic():
                self._changed.set()
            else:
                timers[:] = [ticker.call_at(quiet_at, look)]

        look()
        try:
            self._wait_until(until)
        finally:
            for timer in timers:
                timer.cancel()

    def _raise_if_gone(self) -> None:
        gone = self.line.gone
        if gone is None or self.line.came:
            return
        if self._turn is not None and not self._turn.ended_at:
            raise gone
        if self._user.run_draining:
            raise gevent.GreenletExit
        # Nobody was speaking: the turn that would have been next is the one that failed.
        turn = self._new_turn("lost between turns", time.monotonic())
        self._turns += 1
        self._run.begin(turn)
        self._user.unsettled = turn
        turn.fail(gone.outcome, gone.kind, str(gone))
        turn.ended_at = time.monotonic()
        self._run.over(turn)
        self._ended_by = gone.kind
        self.hang_up()
        raise CallOver(str(gone))

    def row(self) -> Row:
        """Row of `sessions`, in the schema's order."""
        run, scenario = self._run, self._scenario
        return [
            run.id, run.worker, self.session, self._user.protocol, self.codec.name, scenario.name,
            self._started_at, time.monotonic(), self._turns, int(bool(self.ready_at)), self.stream_id,
            self._user.number, self.ready_at or None, self._greeting_s, self._ended_by,
        ]  # fmt: skip
