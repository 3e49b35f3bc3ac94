"""Speak to HTTP text-to-speech servers. A dialect is a request body and a decoder; a new one is one entry in DIALECTS.

Sans-I/O: a decoder takes body bytes and gives audio bytes; sockets and clocks are http_exchange.py's.
"""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from workers.failures import TurnFailed


class Say(NamedTuple):
    """What to say and how."""

    text: str
    voice: str
    format: str
    speed: float
    model: str
    stream: bool


class Decoder(Protocol):
    """Body bytes in, audio bytes out. Both may raise TurnFailed."""

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> None: ...


class Dialect(NamedTuple):
    """How one family of servers is spoken to: where, with which JSON, and how its answers are read."""

    path: str
    body: Callable[[Say], dict[str, Any]]
    decoder: Callable[[], Decoder]
    content_types: tuple[str, ...]  # prefixes of what an answer may be


_LONGEST_EVENT = 16 << 20


class RawAudio:
    """The body is the audio."""

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> None:
        pass


class SpeechEvents:
    """Server-sent events of OpenAI's speech route: `speech.audio.delta` holds base64 audio; others are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._done = False

    def feed(self, data: bytes) -> bytes:
        self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > _LONGEST_EVENT:
            raise TurnFailed("protocol_error", "bad_event", f"an event of more than {_LONGEST_EVENT} bytes")
        return b"".join(self._audio(lines))

    def _audio(self, lines: list[bytes]) -> Iterator[bytes]:
        for line in lines:
            content = line.strip()
            if not content.startswith(b"data:"):
                continue  # event names, comments, blank lines between events
            content = content[5:].strip()
            if content == b"[DONE]":
                self._done = True
                continue
            try:
                event = json.loads(content)
                if event.get("type") == "error" or event.get("error") or event.get("success") is False:
                    raise TurnFailed("protocol_error", "server_said_failure", said_failure(event))
                kind = event["type"]
                if kind == "speech.audio.delta":
                    yield base64.b64decode(event["audio"], validate=True)
                elif kind == "speech.audio.done":
                    self._done = True
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise TurnFailed(
                    "protocol_error", "bad_event", f"an event that is no speech event: {content[:120]!r}"
                ) from None

    def finish(self) -> None:
        try:
            self.feed(b"\n")  # the last line may lack its end
        except TurnFailed as failure:
            if failure.kind != "bad_event":  # else the stream was cut within an event
                raise
        if not self._done:
            raise TurnFailed("answered", "truncated", "the event stream ended without speech.audio.done")


def said_failure(answer: dict[str, Any]) -> str:
    """What a server says went wrong, as one line."""
    why = answer.get("error") or answer.get("message") or answer.get("detail") or answer
    if isinstance(why, dict):
        why = why.get("message") or why
    # JSON may hold half a surrogate pair, which nobody could print.
    line = " ".join(str(why).split()).encode("utf-8", "replace").decode("utf-8")
    return f"the server says it failed: {line[:300]}"


def _openai(say: Say) -> dict[str, Any]:
    body = {"model": say.model, "input": say.text, "voice": say.voice, "response_format": say.format}
    return body if say.speed == 1.0 else {**body, "speed": say.speed}


def _openai_sse(say: Say) -> dict[str, Any]:
    return {**_openai(say), "stream_format": "sse"}


def _synthesize(say: Say) -> dict[str, Any]:
    # Exactly S2's body unless something else than the route's defaults is asked for.
    body: dict[str, Any] = {"text": say.text, "speaker_id": say.voice}
    if say.format != "wav":
        body["format"] = say.format
    if not say.stream:
        body["stream"] = False
    return body if say.speed == 1.0 else {**body, "speed": say.speed}


_AUDIO = ("audio/", "application/octet-stream", "application/ogg", "binary/octet-stream")

DIALECTS: dict[str, Dialect] = {
    "synthesize": Dialect("/v1/synthesize", _synthesize, RawAudio, _AUDIO),
    "openai": Dialect("/v1/audio/speech", _openai, RawAudio, _AUDIO),
    "openai_sse": Dialect("/v1/audio/speech", _openai_sse, SpeechEvents, ("text/event-stream",)),
}
