"""Locust users that speak: derive from SpeechUser, write tasks, call `speak`. Importing this registers our hooks."""

import time
from typing import Any

import gevent

from workers import defects, hooks
from workers.audio.containers import Samples
from workers.audio.track import Track, amplitude
from workers.clients.http_connection import HttpConnection
from workers.clients.http_exchange import Exchange
from workers.clients.http_speech import Say
from workers.failures import TurnFailed
from workers.participant import Participant
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


class SpeechUser(Participant):
    """A person who listens to a text-to-speech server over HTTP.

    Between tasks it thinks as the scenario says, or as a `wait_time` of its own. In an open loop (`--arrivals
    poisson`) each `speak` waits for the schedule's next start instead.
    """

    abstract = True
    protocol = "http_tts"
    keep_audio = True  # False: `speech.samples` stays empty, and a worker with many users needs less memory

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self._connection: HttpConnection | None = None
        self._turns = 0
        self._session = ""

    def pick_text(self) -> tuple[str, str]:
        """Name and text of the scenario's next text."""
        return self._join().pick_text()

    def speak(self, text: str, voice: str | None = None, name: str | None = None) -> Speech:
        """Have `text` spoken, hear it to its end, and return what was heard; a failure is a Speech that is not ok.

        `voice`: one of the scenario's by default. `name`: what tables call this text; its first words by default.
        """
        run = self._join()
        self.settle()
        intended_at = run.next_start() if run.open_loop else self.due_at or time.monotonic()
        self.due_at = 0.0
        if run.draining:
            raise gevent.GreenletExit
        scenario = run.scenario
        voice = voice or run.rng.choice(scenario.voices)
        turn = Turn(
            self._session,
            self._turns,
            "http_tts",
            run.dialect,
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
        self.unsettled = turn
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
            turn.fail("cut", *self.cut)
            raise
        finally:
            turn.ended_at = time.monotonic()
            run.over(turn)
        return Speech(turn)

    def _join(self) -> LiveRun:
        run = self.join()
        if not self._session:
            self._session = run.new_session()
            self._connection = HttpConnection(run.target, run.board, run.scenario.connect_timeout_s)
        if run.draining:
            raise gevent.GreenletExit  # ends the user as Locust itself does, in on_stop too, without a word
        return run

    def record(self, run: LiveRun, turn: Turn) -> None:
        run.record(turn, measure.turn_row)
        if turn.outcome != "cut":
            figures = {"TTFC": measure.ttfc_s(turn), "TTFA": measure.ttfa_s(turn)}
            took_s = (turn.ended_at if not turn.ok else turn.track.last_chunk_at) - turn.intended_at
            hooks.tell_locust(self.environment, run, turn, took_s, figures)

    def session_rows(self) -> list[Row]:
        if not self._session:
            return []
        assert self.run_joined is not None
        run, opened = self.run_joined, self._connection.opened if self._connection else 0
        scenario = run.scenario
        return [[
            run.id, run.worker, self._session, "http_tts", run.dialect, scenario.name,
            self.started_at, time.monotonic(), self._turns, opened,
        ]]  # fmt: skip

    def leave(self) -> None:
        super().leave()
        if self._connection is not None:
            self._connection.close()
