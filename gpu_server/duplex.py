"""Decide who may begin a full-duplex session, and hold what all sessions share. Knows nothing of what is said in one.

The endpoint is PersonaPlex's: its wire, its lock, its log (see duplex_session). What it does not do: prompts change
nothing in what is said or how, and a later client does not overwrite the prompts of one that waits.
"""

from collections.abc import Callable
from itertools import count
from urllib.parse import urlsplit

from websockets.datastructures import Headers

from gpu_server.admission import Admission
from gpu_server.agent_log import AgentLog
from gpu_server.agent_voice import AgentVoice
from gpu_server.authorization import check_token
from gpu_server.duplex_model import Model, moshi_in
from gpu_server.duplex_opus import RATE, prepare_silence
from gpu_server.duplex_session import Line, Session
from gpu_server.duplex_settings import WAITING_MOST, DuplexSettings
from gpu_server.duplex_talk import Mind, Script, Talker
from gpu_server.duplex_wire import PATH
from gpu_server.faults import Fault, draw
from gpu_server.refusal import Refusal
from gpu_server.reply import REPLIES, Replier, SentenceCutter
from gpu_server.service import Service
from gpu_server.trace import DuplexSession
from gpu_server.websocket import Listener


def is_duplex(path: str) -> bool:
    return urlsplit(path).path.rstrip("/") == PATH


class Sessions:
    """The full-duplex side of a server, from its start to its end."""

    def __init__(self, service: Service, settings: DuplexSettings, replier: Replier) -> None:
        """Raises ModelUnavailable, and OSError where the log cannot be written."""
        self._model = None if settings.model is None else Model(moshi_in(settings.model))
        self._service = service
        self._numbers = count()
        self._open = 0
        self._log = AgentLog(settings.log)
        at_a_time = settings.sessions if self._model is None else 1
        service.sessions = Admission(at_a_time, WAITING_MOST)
        service.duplex_mock = self._model is None
        self._voice = AgentVoice(service.engine, RATE, service.settings.pace)
        self._script = Script(settings, self._voice, replier, self._draw, service.record_duplex)
        self._line = Line(
            service.sessions,
            service.ticker,
            settings.step_s,
            self._model is None,
            self._log,
            self._mind,
            service.metrics.ignore,
            self._ended,
        )

    async def warm_up(self) -> None:
        """Raises ModelUnavailable."""
        prepare_silence()
        if self._model is not None:
            await self._model.warm_up()
            return
        for reply in REPLIES:
            cutter = SentenceCutter()
            for sentence in (*cutter.feed(reply), *cutter.finish()):
                await self._voice.rehearse(sentence)

    def door(self, path: str, headers: Headers) -> Listener:
        """Let a client in, though it may have to wait. Raises Refusal."""
        check_token(self._service.settings.token, headers.get("authorization"))
        if not self._service.warm:
            raise Refusal(503, "warming", "the engine is still warming up: wait for /health to say ready", 1)
        if self._open >= self._service.sessions.streams + WAITING_MOST:
            raise Refusal(503, "queue_full", f"{self._open} sessions, {WAITING_MOST} of them in line", 1)
        self._open += 1
        return Session(self._line, next(self._numbers), path)

    def close(self) -> None:
        self._log.close()
        if self._model is not None:
            self._model.close()

    def _mind(self, session: int, fail: Callable[[Exception], None]) -> Mind:
        return Talker(self._script, session, fail) if self._model is None else self._model.mind()

    def _draw(self) -> tuple[Fault, ...]:
        settings = self._service.settings
        return draw(settings.faults, settings.fault_seed, self._service.next_ordinal())

    def _ended(self, row: DuplexSession) -> None:
        self._open -= 1
        self._service.record_duplex(row)
