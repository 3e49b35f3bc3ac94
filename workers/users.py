"""Locust users that speak: derive from SpeechUser, write tasks, call `speak`. Importing this registers our hooks."""

import time
from typing import Any

import gevent
from gevent.event import Event
from locust import User
from locust.exception import StopUser

from workers import defects, hooks
from workers.audio.containers import Samples
from workers.audio.track import Track, amplitude
from workers.clients.http_connection import HttpConnection
from workers.clients.http_exchange import Exchange
from workers.clients.http_speech import Say
from workers.failures import TurnFailed
from workers.run import LiveRun
from workers.samples import measure
from workers.samples.measure import Row, Turn
from workers.texts import shortened


class Speech:
    """One answer, as heard. Durations in seconds, None where the instant was not reached."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    @property
    def ok(self) -> bool:
        return self._turn.ok

    @property
    def request_id(self) -> str:
        """What was sent as X-Request-ID, by which the row and the server's own rows can be found."""
        return self._turn.request_id

    @property
    def outcome(self) -> str:
        return self._turn.outcome

    @property
    def error_kind(self) -> str | None:
        return self._turn.error_kind

    @property
    def error(self) -> str | None:
        return self._turn.error

    @property
    def ttfc_s(self) -> float | None:
        """From the intended start to the first byte of audio."""
        return measure.ttfc_s(self._turn)

    @property
    def ttfa_s(self) -> float | None:
        """From the intended start to the first audible sample, at playout."""
        return measure.ttfa_s(self._turn)

    @property
    def e2e_s(self) -> float | None:
        """From the intended start to the last byte of audio."""
        return measure.e2e_s(self._turn)

    @property
    def rtf(self) -> float | None:
        """Generation time over audio duration."""
        return measure.rtf(self._turn)

    @property
    def audio_s(self) -> float:
        return self._turn.track.audio_s

    @property
    def sample_rate(self) -> int:
        """Hz; 0 where no audio came."""
        return self._turn.track.sample_rate

    @property
    def samples(self) -> Samples:
        """int16 mono, shape (n,); empty where the user class says keep_audio = False."""
        return self._turn.track.samples

    def reject(self, reason: str) -> None:
        """Make this turn a failure of kind `rejected`: your own check of what was said. Call it in the same task."""
        self._turn.fail("answered", "rejected", reason)


class SpeechUser(User):
    """A person who listens to a text-to-speech server over HTTP.

    Between tasks it thinks as the scenario says, or as a `wait_time` of its own. In an open loop (`--arrivals
    poisson`) each `speak` waits for the schedule's next start instead.
    """

    abstract = True
    keep_audio = True  # False: `speech.samples` stays empty, and a worker with many users needs less memory

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._think = self.wait_time
        self.wait_time = self._wait  # type: ignore[method-assign]
        self._due_at = 0.0
        self._unsettled: Turn | None = None
        self._connection: HttpConnection | None = None
        self._run: LiveRun | None = None
        self._turns = 0
        self._session = ""
        self._started_at = 0.0
        self._cut = ("user_stopped", "the user was stopped before the answer ended")

    def wait_time(self) -> float:
        run = self._run or hooks.live_run()
        return run.think_s() if run else 0.0

    def _wait(self) -> float:
        """Locust asks how long to wait after a task: wait here, exactly, and answer nothing."""
        self.settle()
        run = self._run or hooks.live_run()
        if run is None:
            raise StopUser
        if not run.open_loop and not run.draining:
            self._due_at = time.monotonic() + self._think()
            run.board.ticker.sleep_until(self._due_at)
        if run.draining:
            Event().wait()  # parked: Locust stops users that wait at once
        return 0.0

    def pick_text(self) -> tuple[str, str]:
        """Name and text of the scenario's next text."""
        return self._join().pick_text()

    def speak(self, text: str, voice: str | None = None, name: str | None = None) -> Speech:
        """Have `text` spoken, hear it to its end, and return what was heard; a failure is a Speech that is not ok.

        `voice`: one of the scenario's by default. `name`: what tables call this text; its first words by default.
        """
        run = self._join()
        self.settle()
        intended_at = run.next_start() if run.open_loop else self._due_at or time.monotonic()
        self._due_at = 0.0
        if run.draining:
            raise gevent.GreenletExit
        scenario = run.scenario
        voice = voice or run.rng.choice(scenario.voices)
        turn = Turn(
            self._session,
            self._turns,
            "http_tts",
            scenario.dialect,
            run.new_request_id(),
            name or shortened(text),
            len(text),
            voice,
            run.phase(intended_at),
            intended_at,
        )
        self._turns += 1
        say = Say(text, voice, scenario.format, scenario.speed, scenario.model, scenario.stream)
        threshold = amplitude(scenario.audible_dbfs)

        def begin() -> Exchange:
            track = Track(threshold, self.keep_audio)
            return Exchange(run.target.dialect, scenario.format, scenario.sample_rate, track)

        run.begin(turn)
        self._unsettled = turn
        try:
            assert self._connection is not None
            self._connection.ask(say, turn, time.monotonic() + scenario.timeout_s, begin)
            defects.check(
                turn.track, len(text), scenario.speed, scenario.shortest_s_per_char, scenario.longest_s_per_char
            )
        except TurnFailed as failure:
            turn.fail(failure.outcome, failure.kind, str(failure))
        except Exception as error:  # a bug of ours must not pass for an answer
            turn.fail("protocol_error", "internal_error", f"{type(error).__name__}: {error}")
            run.listener_errors += 1
        except gevent.GreenletExit:
            turn.fail("cut", *self._cut)
            raise
        finally:
            turn.ended_at = time.monotonic()
            run.over(turn)
        return Speech(turn)

    def _join(self) -> LiveRun:
        if self._run is None:
            run = hooks.live_run()
            if run is None:
                raise StopUser
            self._run = run
            self._session = run.new_session()
            self._started_at = time.monotonic()
            self._connection = HttpConnection(run.target, run.board, run.scenario.connect_timeout_s)
            run.users.add(self)
            self.greenlet.link(lambda _: self._leave())  # also where a subclass's on_stop does not call ours
        if self._run.draining:
            raise gevent.GreenletExit  # ends the user as Locust itself does, in on_stop too, without a word
        return self._run

    def settle(self) -> None:
        """Record the turn that is over: its row, and Locust's own tables."""
        turn = self._unsettled
        if turn is None or self._run is None or not turn.ended_at:
            return
        self._unsettled = None
        self._run.record(turn)
        if turn.outcome != "cut":
            hooks.tell_locust(self.environment, self._run, turn)

    def cut_short(self, kind: str, line: str) -> None:
        if self._unsettled is not None and not self._unsettled.ended_at:
            self._cut = (kind, line)
            self.greenlet.kill(block=False)

    def session_row(self) -> Row:
        assert self._run is not None
        scenario, opened = self._run.scenario, self._connection.opened if self._connection else 0
        return [
            self._run.id, self._run.worker, self._session, "http_tts", scenario.dialect, scenario.name,
            self._started_at, time.monotonic(), self._turns, opened,
        ]  # fmt: skip

    def on_stop(self) -> None:
        self._leave()

    def _leave(self) -> None:
        run = self._run
        if run is not None and self in run.users:
            self.settle()
            run.leave(self)
        if self._connection is not None:
            self._connection.close()
