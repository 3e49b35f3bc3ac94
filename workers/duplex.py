"""Locust users that talk with full-duplex models: derive from DuplexUser, use `self.iteration()` and `self.call()`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workers import hooks
from workers.call import Call
from workers.conversing import CallUser
from workers.duplex_call import DuplexCall
from workers.iterations import Iteration
from workers.run import LiveRun
from workers.samples import measure_call, measure_duplex
from workers.samples.measure import Turn
from workers.samples.measure_duplex import DuplexTurn

_ANY = Iteration(None, None)


class DuplexUser(CallUser):
    """A person who talks with a full-duplex speech model: PersonaPlex, Moshi.

        @task
        def ask(self):
            with self.iteration(), self.call() as session:
                session.listen()
                turn = session.say()

    `self.iteration()` waits for this user's turn in a run with `--mode` or `--iterations`; else it waits for nothing.
    """

    abstract = True
    protocol = "personaplex"

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._iteration = _ANY
        self._counted = self._came_up = False
        self._sessions = 0

    def thinks_by_schedule(self, run: LiveRun) -> bool:
        """Between counted iterations nobody thinks: each is a session of its own.

        But after one that did not come up: a server that restarts must not cost all of them.
        """
        return self._counted and self._came_up

    @contextmanager
    def iteration(self) -> Iterator[Iteration]:
        """One of the run's iterations, from its grant to its end."""
        run = self.join()
        self.settle()
        self._iteration = granted = run.dealing.next()
        self._counted = granted.number is not None
        try:
            yield granted
        finally:
            self._iteration = _ANY
            self.settle()
            run.dealing.over(granted)

    def goes_on(self, session: Call) -> bool:
        """Whether another turn is due in a session of an iteration without a number."""
        run = self.join()
        return not run.dealing.iteration_ended(self._iteration) and session.wants_more()

    def call(self, stream_id: str | None = None) -> Call:
        """A session, to be used in a `with` statement: connects, waits for the handshake; hangs up at its end."""
        run, session, stream_id = self._new_call(stream_id)
        queries = run.duplex.queries
        number = self._iteration.number
        place = self.number + self._sessions if number is None else number
        self._sessions += 1
        begin_with = queries[place % len(queries)]
        self._call = DuplexCall(self, run, session, stream_id, iteration=self._iteration, begin_with=begin_with)
        return self._call

    def hung_up(self, call: Call) -> None:
        self._came_up = bool(call.ready_at)
        super().hung_up(call)

    def record(self, run: LiveRun, turn: Turn) -> None:
        assert isinstance(turn, DuplexTurn)
        run.record(turn, measure_duplex.duplex_row)
        if turn.outcome == "cut":
            return
        ended_s = measure_duplex.e2e_s(turn)
        took_s = (
            ended_s if turn.ok and ended_s is not None else turn.ended_at - (turn.user_offset_at or turn.intended_at)
        )
        figures = {
            "TTFT": measure_duplex.ttft_s(turn),
            "ITL": turn.itl_s,
            "floor_transfer_offset": measure_call.floor_transfer_offset_s(turn),
        }
        hooks.tell_locust(self.environment, run, turn, max(0.0, took_s), figures)
