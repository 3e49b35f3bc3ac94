"""Locust users that call voice agents: derive from CallUser, write tasks, use `self.call()`. Registers our hooks."""

import uuid
from typing import Any

import gevent
from locust.exception import StopUser

from workers import hooks
from workers.call import Call
from workers.participant import Participant
from workers.run import LiveRun
from workers.samples import measure_call
from workers.samples.measure import Row, Turn
from workers.samples.measure_call import CallTurn


class CallUser(Participant):
    """A person who calls a voice agent over a WebSocket and talks with it.

        @task
        def order(self):
            with self.call() as call:
                call.listen()
                turn = call.say("order.wav")
                if turn.floor_transfer_offset_s is None:
                    turn.reject("no answer")
                call.interrupt(after_s=1.0)

    A call that breaks ends the task; the next task calls again. Within a call, `say` thinks (`think_s`) first.
    """

    abstract = True
    protocol = "voice_agent"
    keep_audio = False  # True: `turn.heard` holds the answer's samples; costs memory

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._call: Call | None = None
        self.kept = False  # whether this session's worst turns may be kept as audio

    def thinks_by_schedule(self, run: LiveRun) -> bool:
        return False

    def call(self, stream_id: str | None = None) -> Call:
        """A call, to be used in a `with` statement, which connects and hangs up.

        stream_id: part of the URL and of the server's log lines; a new one by default.
        """
        run, session, stream_id = self._new_call(stream_id)
        self._call = Call(self, run, run.calling, session, stream_id)
        return self._call

    def _new_call(self, stream_id: str | None) -> tuple[LiveRun, str, str]:
        """The run, and ids of a session and its stream, where this user may call."""
        run = self.join()
        self.settle()
        if run.draining:
            raise gevent.GreenletExit
        if self._call is not None and self._call.up:
            run.give_up("a user has one call at a time: leave the `with` block of the first before the second")
            raise StopUser
        session = run.new_session()
        stream_id = stream_id or f"{run.short_worker}-{self.number}-{uuid.uuid4().hex[:8]}"
        self.kept = run.rng.random() < run.scenario.keep_audio
        return run, session, stream_id

    def barges_in(self) -> bool:
        """Whether the scenario (`barge_in_share`) wants the next turn interrupted; drawn anew each time."""
        run = self.join()
        return run.rng.random() < run.scenario.barge_in_share

    # ---- what a call asks of its user

    @property
    def run_draining(self) -> bool:
        return self.run_joined is None or self.run_joined.draining

    def hung_up(self, call: Call) -> None:
        self.settle()
        if self.run_joined is not None and self._call is call:
            self._call = None
            if self in self.run_joined.users:
                self.run_joined.record_session(call.row())

    # ---- the record

    def record(self, run: LiveRun, turn: Turn) -> None:
        assert isinstance(turn, CallTurn)
        run.record(turn, measure_call.call_row)
        if turn.outcome == "cut":
            return
        transfer_s = measure_call.floor_transfer_offset_s(turn)
        took_s = (
            transfer_s
            if turn.ok and transfer_s is not None
            else turn.ended_at - (turn.user_offset_at or turn.intended_at)
        )
        figures = {
            "floor_transfer_offset": transfer_s,
            "TTFC": measure_call.ttfc_s(turn),
            "TTFA": measure_call.ttfa_s(turn),
        }
        hooks.tell_locust(self.environment, run, turn, max(0.0, took_s), figures)

    def session_rows(self) -> list[Row]:
        return [self._call.row()] if self._call is not None and self._call.begun else []

    def leave(self) -> None:
        super().leave()
        if self._call is not None:
            self._call.hang_up()
