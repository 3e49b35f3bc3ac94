"""One run as one worker lives it: its scenario, its log, the turns under way, and how it ends.

Knows nothing of Locust's messages (hooks.py) or of HTTP.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gevent
from gevent.event import AsyncResult, Event

from workers.arrivals import schedule
from workers.clients.http_connection import Target, target
from workers.clients.http_speech import DIALECTS
from workers.clients.link import switchboard
from workers.clients.ticker import Call
from workers.health import Health
from workers.samples.measure import Row, Turn, start_row, turn_row
from workers.samples.recorder import LogFull, Recorder
from workers.samples.schema import names
from workers.settings import Scenario, token
from workers.texts import generated


class LiveUser(Protocol):
    """What a run needs of its users."""

    def settle(self) -> None:
        """Record the turn that is over, if one still waits for a word from the user's code."""

    def cut_short(self, kind: str, line: str) -> None:
        """End the turn under way."""

    def session_row(self) -> Row: ...


class LiveRun:
    """A run under way in this process."""

    def __init__(
        self,
        identity: dict[str, Any],
        worker: str,
        facts: dict[str, Any],
        log: Path,
        on_trouble: Callable[[str], None],
    ) -> None:
        """identity: what the master decided (run, scenario, texts, starts_wall_at, open_loop_wall_at, host, share).

        Raises BadTarget, OSError.
        """
        self.id: str = identity["run"]
        self.worker = worker
        self.scenario = Scenario.model_validate(identity["scenario"])
        self.texts: dict[str, str] | None = identity["texts"]
        self.rng = random.Random(f"{identity['scenario']['seed']}/{worker}")
        self.draining = False
        self.listener_errors = 0
        self.lost_rows = 0
        self.error_lines: dict[str, str] = {}
        self.users: set[LiveUser] = set()
        self.turns = self.starts = self.dropped_starts = self.in_flight = 0
        self._none_in_flight = Event()
        self._none_in_flight.set()
        self._on_trouble = on_trouble
        self._closed = False
        self._token = token()
        self.target: Target = target(
            identity["host"],
            DIALECTS[self.scenario.dialect],
            self.scenario.path,
            self.scenario.insecure,
            self._token,
        )
        self.board = switchboard()
        self._wall_offset_s = time.time() - time.monotonic()
        self._measured_from = identity["starts_wall_at"] - self._wall_offset_s + self.scenario.warm_up_s
        self.recorder = Recorder(log, facts)
        self._health = Health(self.board.ticker, self._record_second)
        self._prefix = f"{self.id}.{worker.rpartition('_')[2]}"
        self._request_count = self._session_count = 0
        self._waiting: deque[AsyncResult[float]] = deque()
        self._next_start: Call | None = None
        if self.open_loop:
            self._begin_schedule(identity["open_loop_wall_at"] - self._wall_offset_s, identity["share"].get(worker))

    # ---- what is due

    @property
    def open_loop(self) -> bool:
        return self.scenario.arrivals != "closed"

    def _begin_schedule(self, begins_at: float, share: list[int] | None) -> None:
        """share: [index, workers]; a worker that joined after the start has none, the schedule is dealt out."""
        if share is None or self.scenario.rate is None:
            return
        offsets = schedule(self.scenario.arrivals, self.scenario.rate, self.scenario.seed, *share)

        def arrange() -> None:
            at = begins_at + next(offsets)
            self._next_start = self.board.ticker.call_at(at, lambda: due(at))

        def due(at: float) -> None:
            arrange()
            if self.draining:
                return
            if self._waiting:
                self._waiting.popleft().set(at)
            else:
                self.dropped_starts += 1

        arrange()

    def next_start(self) -> float:
        """Park the calling user until a start of the schedule falls to it; the instant it was due."""
        turn: AsyncResult[float] = AsyncResult()
        self._waiting.append(turn)
        try:
            return float(turn.get())
        except BaseException:
            if turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def think_s(self) -> float:
        return self.rng.uniform(*self.scenario.think_s)

    def pick_text(self) -> tuple[str, str]:
        """Name and text of what a user says next."""
        if self.texts is None:
            return "generated", generated(self.rng)
        name = self.rng.choice(list(self.texts))
        return name, self.texts[name]

    # ---- turns

    def new_session(self) -> str:
        self._session_count += 1
        return f"{self.worker}:{self._session_count}"

    def new_request_id(self) -> str:
        self._request_count += 1
        return f"{self._prefix}.{self._request_count}"

    def phase(self, at: float) -> str:
        return "measured" if at >= self._measured_from else "warm_up"

    def begin(self, turn: Turn) -> None:
        """The turn's start is on disk before its first byte is on the wire."""
        self.starts += 1
        self.in_flight += 1
        self._none_in_flight.clear()
        self._record("turn_starts", start_row(turn, self.id, self.worker, self.scenario.name))

    def over(self, turn: Turn) -> None:
        """The turn has ended, well or not."""
        if turn.sent_at:
            self._health.send_late_max_s = max(self._health.send_late_max_s, turn.sent_at - turn.intended_at)
        self.turns += 1
        self.in_flight -= 1
        if self.in_flight == 0:
            self._none_in_flight.set()

    def record(self, turn: Turn) -> None:
        if turn.error and self._token:
            turn.error = turn.error.replace(self._token, "[token]")
        keep_chunks = self.rng.random() < self.scenario.keep_chunks
        self._record("turns", turn_row(turn, self.id, self.worker, self.scenario.name, keep_chunks))

    def _record(self, table: str, row: Row) -> None:
        if self._closed:
            self.lost_rows += 1
            return
        try:
            self.recorder.append(table, row)
        except (
            OverflowError,
            TypeError,
            ValueError,
        ):  # a value that no row can hold: the run goes on, the loss is told
            self.lost_rows += 1
        except LogFull as error:
            self.lost_rows += 1
            if self.lost_rows == 1:
                self._on_trouble(f"cannot record rows: {error.strerror}; free some space, or name another --spool-dir")

    def _record_second(self, figures: dict[str, float]) -> None:
        known: dict[str, object] = {
            "run": self.id,
            "worker": self.worker,
            **figures,
            "starts": self.starts,
            "dropped_starts": self.dropped_starts,
            "in_flight": self.in_flight,
            "users": len(self.users),
            "rows": self.recorder.rows,
            "listener_errors": self.listener_errors,
        }
        self.starts = self.dropped_starts = 0
        self._record("workers", [known[name] for name in _WORKER_COLUMNS])

    # ---- the end

    def drain(self, grace_s: float) -> None:
        """Begin no more turns, let those under way end for `grace_s` seconds, cut the rest, and close the log."""
        if self.draining:
            return
        self.draining = True
        self._none_in_flight.wait(grace_s)
        for user in list(self.users):
            user.cut_short("run_ended", f"the run ended before the answer did ({grace_s:g} s after the last start)")
        self._none_in_flight.wait(5)
        for user in list(self.users):
            user.settle()
            self.leave(user)
        while self._waiting:
            self._waiting.popleft().set_exception(gevent.GreenletExit())
        self._health.report()
        self.close()
        gevent.sleep(0.01)  # let users that were cut leave Locust's group: it complains of dead ones

    def leave(self, user: LiveUser) -> None:
        """A user's session is over."""
        if user in self.users:
            self.users.remove(user)
            self._record("sessions", user.session_row())

    def close(self) -> None:
        if self._next_start is not None:
            self._next_start.cancel()
        self._health.close()
        self._closed = True
        self.recorder.close()


_WORKER_COLUMNS = names("workers")
