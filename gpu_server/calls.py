"""Decide who may call, and hold what all calls share. Knows nothing of what is said in a call."""

import secrets
from dataclasses import asdict
from itertools import count
from urllib.parse import unquote, urlsplit

from websockets.datastructures import Headers

from gpu_server.agent import Agent, Ledger
from gpu_server.agent_answer import Parts
from gpu_server.agent_log import AgentLog, CallLog
from gpu_server.agent_settings import AgentSettings
from gpu_server.agent_voice import AgentVoice
from gpu_server.agent_wire import AudioWriter
from gpu_server.authorization import check_token
from gpu_server.faults import Fault, draw
from gpu_server.recognizer import choose_recognizer
from gpu_server.refusal import Refusal
from gpu_server.reply import ChatReplier, Replier, ScriptedReplier
from gpu_server.service import Service
from gpu_server.stages import Stage
from gpu_server.trace import AgentTurn
from gpu_server.websocket import Connection, Listener

_TRY_AGAIN_LATER = 1013
_LONGEST_ID = 200  # of what clients make up


class Calls:
    """The agent's side of a server, from its start to its end."""

    def __init__(self, service: Service, settings: AgentSettings) -> None:
        self.settings = settings
        self._service = service
        self._numbers = count()
        service.calls_most = settings.calls
        stages = {name: Stage(slots) for name, slots in asdict(settings.slots).items()}
        for name, stage in stages.items():
            if stage.admission is not None:
                service.metrics.watch_stage(name, stage.admission)
        recognizer = choose_recognizer(settings.recognizer, settings.recognizer_model, settings.known_queries)
        self._parts = Parts(
            settings,
            AgentVoice(service.engine, settings.output_rate, service.settings.pace),
            recognizer,
            choose_replier(settings),
            service.ticker,
            AudioWriter(settings.output_rate, settings.output == "wav"),
            stages,
        )
        self._log = AgentLog(settings.log)

    async def warm_up(self) -> None:
        """Raises CannotRecognize."""
        if self._parts.recognizer is not None:
            await self._parts.recognizer.start()

    def door(self, path: str, headers: Headers) -> Listener:
        """Let a caller in. Raises Refusal."""
        stream_id = stream_id_of(path)
        if stream_id is None:
            raise Refusal(
                404,
                "not_found",
                f"no WebSocket at {urlsplit(path).path[:_LONGEST_ID]!r}; call /ws/STREAM_ID or /api/chat",
            )
        check_token(self._service.settings.token, headers.get("authorization"))
        if not self._service.warm:
            raise Refusal(503, "warming", "the engine is still warming up: wait for /health to say ready", 1)
        if self._service.calls >= self.settings.calls:
            return _Busy(self._service.calls)
        self._service.calls += 1
        log = CallLog(self._log, stream_id, next(self._numbers))
        return Agent(self._parts, stream_id, log, Ledger(self._draw, self._record, self._ignored, self._ended))

    async def close(self) -> None:
        if self._parts.recognizer is not None:
            await self._parts.recognizer.close()

    def close_log(self) -> None:
        self._log.close()

    def _draw(self) -> tuple[Fault, ...]:
        settings = self._service.settings
        return draw(settings.faults, settings.fault_seed, self._service.next_ordinal())

    def _record(self, row: AgentTurn) -> None:
        self._service.record_turn(row)

    def _ignored(self, kind: str) -> None:
        self._service.metrics.ignore(kind)

    def _ended(self) -> None:
        self._service.calls -= 1


def stream_id_of(path: str) -> str | None:
    """The id in `/ws/ID`, or one made up for `/ws`; None for other paths. Fit to be a word in a log line."""
    parts = urlsplit(path).path.split("/")
    if parts[:2] != ["", "ws"] or len(parts) > 3:
        return None
    given = unquote(parts[2]) if len(parts) == 3 else ""
    kept = "".join(letter if letter.isprintable() and not letter.isspace() else "_" for letter in given)
    return kept[:_LONGEST_ID] or f"call_{secrets.token_hex(6)}"


def choose_replier(settings: AgentSettings) -> Replier:
    if settings.reply_url is None:
        return ScriptedReplier(settings.words_per_s)
    return ChatReplier(settings.reply_url, settings.reply_model)


class _Busy:
    """Tells a caller that all lines are taken."""

    def __init__(self, calls: int) -> None:
        self._calls = calls

    def opened(self, connection: Connection) -> None:
        connection.close(_TRY_AGAIN_LATER, f"{self._calls} calls; no more at a time")

    def message(self, data: bytes, at: float) -> None:
        """Nobody listens."""

    def text(self) -> None:
        """Nobody listens."""

    def closed(self, by_client: bool) -> None:
        """Nothing to free."""
