"""What every simulated person does whatever the protocol: join the run, think, record, leave. Registers our hooks."""

import time
from collections.abc import Callable
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from locust import User
from locust.exception import StopUser

from workers import hooks
from workers.run import LiveRun
from workers.samples.measure import Row, Turn


class Participant(User):
    """One person of a run. Derive from SpeechUser or CallUser instead.

    Between tasks it thinks as the scenario says, or as a `wait_time` of its own.
    """

    abstract = True
    protocol: ClassVar[str]

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._think: Callable[[], float] = self.wait_time
        self.wait_time = self._wait  # type: ignore[method-assign]
        self.due_at = 0.0
        self.unsettled: Turn | None = None
        self.run_joined: LiveRun | None = None
        self.started_at = 0.0
        self.number = 0
        self.cut = ("user_stopped", "the user was stopped before the answer ended")

    def wait_time(self) -> float:
        run = self.run_joined or hooks.live_run()
        return run.think_s() if run else 0.0

    def thinks_by_schedule(self, run: LiveRun) -> bool:
        """Whether something else than thinking says when the next task is due."""
        return run.open_loop

    def _wait(self) -> float:
        """Locust asks how long to wait after a task: wait here, exactly, and answer nothing."""
        self.settle()
        run = self.run_joined or hooks.live_run()
        if run is None:
            raise StopUser
        if not self.thinks_by_schedule(run) and not run.draining:
            self.due_at = time.monotonic() + self._think()
            run.board.ticker.sleep_until(self.due_at)
        if run.draining:
            Event().wait()  # parked: Locust stops users that wait at once
        return 0.0

    def join(self) -> LiveRun:
        """The run this user takes part in, from its first word on. Raises StopUser outside one."""
        if self.run_joined is None:
            run = hooks.live_run()
            if run is None:
                raise StopUser
            if run.draining:
                raise gevent.GreenletExit  # too late for this one: its session would be a row nobody can write
            self.run_joined = run
            self.number = run.new_user()
            self.started_at = time.monotonic()
            run.users.add(self)
            self.greenlet.link(lambda _: self.leave())  # also where a subclass's on_stop does not call ours
        return self.run_joined

    def settle(self) -> None:
        """Record the turn that is over: its row, and Locust's own tables."""
        turn, run = self.unsettled, self.run_joined
        if turn is None or run is None or not turn.ended_at:
            return
        self.unsettled = None
        self.record(run, turn)

    def record(self, run: LiveRun, turn: Turn) -> None:
        raise NotImplementedError

    def session_rows(self) -> list[Row]:
        """Rows of `sessions` that are not recorded yet."""
        raise NotImplementedError

    def cut_short(self, kind: str, line: str) -> None:
        if self.unsettled is not None and not self.unsettled.ended_at:
            self.cut = (kind, line)
            self.greenlet.kill(block=False)

    def on_stop(self) -> None:
        self.leave()

    def leave(self) -> None:
        run = self.run_joined
        if run is not None and self in run.users:
            self.settle()
            run.leave(self)
