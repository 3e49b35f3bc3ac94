"""One run as one worker lives it: its scenario, its log, the turns under way, and how it ends.

Knows nothing of Locust's messages (hooks.py) or of HTTP.
"""

import gc
import inspect
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import gevent
from gevent.event import AsyncResult, Event

from workers import recordings
from workers.arrivals import schedule
from workers.calling import Calling
from workers.clients.http_connection import Target, target
from workers.clients.http_speech import DIALECTS
from workers.clients.switchboard import switchboard
from workers.clients.ticker import Call
from workers.dealing import Dealing, Say
from workers.events import ServerFigure
from workers.health import Health
from workers.samples.measure import Row, Turn, start_row
from workers.samples.recorder import LogFull, Recorder
from workers.samples.schema import names
from workers.settings import Scenario, token
from workers.targets import fingerprint, fingerprint_of
from workers.texts import generated

if TYPE_CHECKING:
    from workers.duplex_calling import DuplexCalling

AnyTurn = TypeVar("AnyTurn", bound=Turn)


class LiveUser(Protocol):
    """What a run needs of its users."""

    def settle(self) -> None:
        """Record the turn that is over, if one still waits for a word from the user's code."""

    def cut_short(self, kind: str, line: str) -> None:
        """End the turn under way."""

    def session_rows(self) -> list[Row]:
        """Rows of `sessions` that are not recorded yet."""


class LiveRun:
    """A run under way in this process."""

    def __init__(
        self,
        identity: dict[str, Any],
        worker: str,
        facts: dict[str, Any],
        log: Path,
        on_trouble: Callable[[str], None],
        *,
        say: Say | None = None,
    ) -> None:
        """identity: what the master decided (run, scenario, texts, starts_wall_at, open_loop_wall_at, hosts, share).

        say: to the master, of iterations, in a run that has some. Raises BadTarget, OSError.
        """
        self.id: str = identity["run"]
        self.run_dir: str = identity["run_dir"]
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
        self.board = switchboard()
        self.dealing = Dealing(say)
        self._identity = identity
        self._seconds: list[Callable[[], dict[str, object]]] = []  # what else belongs into a row of `workers`
        self._closing: list[Callable[[], None]] = []
        self._wall_offset_s = time.time() - time.monotonic()
        self._level: int | None = identity.get("level")
        self._level_measured = False
        self._measured_from = identity["starts_wall_at"] - self._wall_offset_s + self.scenario.warm_up_s
        self.prepare()
        self.recorder = Recorder(log, facts)
        self._health = Health(self.board.ticker, self._record_second)
        self.short_worker = worker.rpartition("_")[2]
        self._prefix = f"{self.id}.{self.short_worker}"
        self._request_count = self._session_count = self._user_count = 0
        self._waiting: deque[AsyncResult[float]] = deque()
        self._next_start: Call | None = None
        if self.open_loop:
            self._begin_schedule(identity["open_loop_wall_at"] - self._wall_offset_s, identity["share"].get(worker))

    # ---- where to, by protocol; made when the first user needs it

    @cached_property
    def dialect(self) -> str:
        """Of HTTP users."""
        return self.scenario.dialect_of("http_tts")

    @cached_property
    def target(self) -> Target:
        """Of HTTP users. Raises BadTarget."""
        scenario, host = self.scenario, self._identity["hosts"]["http_tts"]
        return target(host, DIALECTS[self.dialect], scenario.path, scenario.insecure, self._token)

    @cached_property
    def calling(self) -> Calling:
        """Of users who call. Raises BadTarget, ClipError."""
        found = Calling(self.scenario, self._identity["hosts"]["voice_agent"], self._token, self.board, self.worker)
        self._seconds.append(found.second)
        self._closing.append(found.close)
        return found

    @cached_property
    def duplex(self) -> "DuplexCalling":
        """Of users who talk with full-duplex models. Raises BadTarget, RecordingError."""
        from workers.duplex_calling import DuplexCalling  # few runs need it, and every worker imports this module

        found = DuplexCalling(self.scenario, self._identity["servers"], self._token, self.board, self.worker)
        self._seconds.append(found.second)
        self._closing.append(found.close)
        return found

    def prepare(self) -> None:
        """Make what the run's protocols need now: what cannot work is known before the first user starts."""
        wanted = self._identity["clips"]
        if wanted is not None and wanted != fingerprint(self.scenario):
            folder = self.scenario.audio_dir
            raise ValueError(f"its {folder} holds other queries than the master's: copy the master's folder to it")
        wanted = self._identity["recordings"]
        if wanted is not None and wanted != fingerprint_of(recordings.of_scenario(self.scenario)):
            raise ValueError(
                "its recordings are others than the master's: name a folder that holds them, --samples-dir"
            )
        for protocol in self._identity["hosts"]:
            _ = getattr(self, _SHARED[protocol])
        # What is here now stays: looking through it again and again costs a full worker pauses of 50 ms.
        inspect.stack()  # Locust calls it when a run stops, and its first time takes 60 ms
        gc.unfreeze()  # what an earlier run left
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 100)  # chunks come and go by the ten thousand, and none is part of a cycle

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

    def new_user(self) -> int:
        self._user_count += 1
        return self._user_count

    def new_session(self) -> str:
        self._session_count += 1
        return f"{self.worker}:{self._session_count}"

    def new_request_id(self) -> str:
        self._request_count += 1
        return f"{self._prefix}.{self._request_count}"

    def phase(self, at: float) -> str:
        return "measured" if at >= self._measured_from else "warm_up"

    def enter_level(self, users: int, *, measured: bool) -> None:
        """Turns that begin from now on belong to this load level, and count or do not."""
        self._level, self._level_measured = users, measured

    def begin(self, turn: Turn) -> None:
        """The turn's start is on disk before its first byte is on the wire."""
        if self._level is not None:
            turn.level, turn.phase = self._level, "measured" if self._level_measured else "warm_up"
        self.starts += 1
        self.in_flight += 1
        self._none_in_flight.clear()
        self._record("turn_starts", start_row(turn, self.id, self.worker, self.scenario.name))

    def over(self, turn: Turn) -> None:
        """The turn has ended, well or not."""
        self._health.send_late_max_s = max(self._health.send_late_max_s, turn.late_s)
        self.turns += 1
        self.in_flight -= 1
        if self.in_flight == 0:
            self._none_in_flight.set()

    def record(self, turn: AnyTurn, row_of: Callable[[AnyTurn, str, str, str, bool], Row]) -> None:
        """Write a turn's row, which `row_of` makes (measure.turn_row or measure_call.call_row)."""
        if turn.error and self._token:
            turn.error = turn.error.replace(self._token, "[token]")
        keep_chunks = self.rng.random() < self.scenario.keep_chunks
        self._record("turns", row_of(turn, self.id, self.worker, self.scenario.name, keep_chunks))

    def give_up(self, line: str) -> None:
        """Something makes going on pointless: the whole run ends."""
        self._on_trouble(line)

    def record_session(self, row: Row) -> None:
        self._record("sessions", row)

    def record_figure(self, figure: ServerFigure, stream_id: str, session: str, turn: int | None) -> None:
        """What a server told of itself in band."""
        known: dict[str, object] = {
            "run": self.id,
            "source": "in-band",
            "stream_id": stream_id,
            "component": figure.component,
            "metric": figure.metric,
            "value_s": figure.value_s,
            "instance": figure.instance,
            "session": session,
            "turn": turn,
            "at": time.time(),
        }
        self._record("server", [known.get(name) for name in _SERVER_COLUMNS])

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
        for second in self._seconds:
            known |= second()
        self.starts = self.dropped_starts = 0
        self._record("workers", [known.get(name) for name in _WORKER_COLUMNS])

    # ---- the end

    def drain(self, grace_s: float, before_closing: Callable[["LiveRun"], None] | None = None) -> None:
        """Begin no more turns, let those under way end for `grace_s` seconds, cut the rest, and close the log."""
        if self.draining:
            return
        self.draining = True
        self.dealing.stop()
        self._none_in_flight.wait(grace_s)
        for user in list(self.users):
            user.cut_short("run_ended", f"the run ended before the answer did ({grace_s:g} s after the last start)")
        self._none_in_flight.wait(5)
        for user in list(self.users):
            user.settle()
            self.leave(user)
        while self._waiting:
            self._waiting.popleft().set_exception(gevent.GreenletExit())
        self.dealing.close()
        self._health.report()
        if before_closing is not None:
            before_closing(self)
        self.close()
        gevent.sleep(0.01)  # let users that were cut leave Locust's group: it complains of dead ones

    def keepsakes(self) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of the audio files that this worker's calls leave behind, one after the other."""
        if "voice_agent" in self._identity["hosts"]:
            yield from self.calling.keepsake_files()
        if "personaplex" in self._identity["hosts"]:
            yield from self.duplex.keepsake_files()

    def leave(self, user: LiveUser) -> None:
        """A user's session is over."""
        if user in self.users:
            self.users.remove(user)
            for row in user.session_rows():
                self.record_session(row)

    def close(self) -> None:
        if self._next_start is not None:
            self._next_start.cancel()
        self._health.close()
        self._closed = True
        self.recorder.close()
        for close in self._closing:
            close()


# What users of a protocol share, by the name of the property that makes it.
_SHARED = {"http_tts": "target", "voice_agent": "calling", "personaplex": "duplex"}
_WORKER_COLUMNS, _SERVER_COLUMNS = names("workers"), names("server")
