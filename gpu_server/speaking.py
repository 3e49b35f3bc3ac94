"""Answer one speech request over ASGI, from its body to its last byte. Knows nothing of engines or containers inside.

No status line leaves before the first audio, so an engine that fails until then still gives an honest error. One that
fails later cuts the connection: a chunked answer without its last chunk cannot be mistaken for a whole one.
"""

import asyncio
import base64
import json
import sys
import time
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any

import numpy as np
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gpu_server.admission import QueueFull
from gpu_server.audio_out import FORMATS
from gpu_server.authorization import check_token
from gpu_server.dialects import BODIES, Ask, check_ask, read_body
from gpu_server.faults import WHOLE_ANSWERS, Fault, InjectedCut, draw, spoil_delivery, spoil_source
from gpu_server.pace import paced, rechunked
from gpu_server.refusal import Refusal, send_refusal
from gpu_server.service import Service
from gpu_server.speech import SAMPLE_RATE, CannotSpeak, Chunks, EngineBusy
from gpu_server.visit import Visit

MAX_BODY_BYTES = 1 << 20
_DISCARD_BYTES = 16 << 20
_DISCARD_S = 2.0

HeaderList = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection before the answer was whole."""


class SpeechAnswer(Response):
    """The answer to one request, made while it is sent."""

    def __init__(self, service: Service, received_at: float) -> None:
        self.service = service
        self.received_at = received_at
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        visit = Visit(scope["path"], self.service.next_ordinal(), headers.get("x-request-id"), self.received_at)
        try:
            await self._answer(visit, headers, receive, send)
        except ClientGone:
            visit.outcome = "client_gone"
        except InjectedCut:
            pass  # Returning now makes uvicorn close the connection without a last chunk: the cut itself.
        except Exception as error:
            print(f"gpu_server: {visit.route} failed: {type(error).__name__}: {error}", file=sys.stderr)
            if visit.status is None:
                visit.status = 500
                await send_refusal(send, Refusal(500, "engine_failed", f"speech failed: {error}"), _echo(visit))
        finally:
            self.service.record(visit.row())

    async def _answer(self, visit: Visit, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            check_token(self.service.settings.token, headers.get("authorization"))
            data = await _read(receive, headers)
            visit.ask = read_body(BODIES[visit.route], data)
            visit.ask = check_ask(visit.ask, self.service.engine.voices, self.service.settings.max_characters)
            if not self.service.warm:
                raise Refusal(503, "warming", "the engine is still warming up: wait for /health to say ready", 1)
            await _while_connected(self._speak(visit, visit.ask, send), receive)
        except _TooLarge as refusal:
            visit.outcome, visit.status = "bad_request", refusal.status
            await send_refusal(send, refusal, [*_echo(visit), (b"connection", b"close")], last=False)
            await _discard(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Refusal as refusal:
            visit.outcome = "refused" if refusal.status in (401, 503) else "bad_request"
            visit.status = refusal.status
            await send_refusal(send, refusal, _echo(visit))

    async def _speak(self, visit: Visit, ask: Ask, send: Send) -> None:
        try:
            async with self.service.admission.slot():
                visit.admitted_at = time.monotonic()
                settings = self.service.settings
                faults = draw(settings.faults, settings.fault_seed, visit.ordinal)
                instead = next((fault for fault in faults if fault.kind in WHOLE_ANSWERS), None)
                if instead is not None:
                    await _spoiled_answer(visit, instead, send)
                    return
                async with aclosing(self._audio(visit, ask, faults, visit.admitted_at)) as chunks:
                    if ask.delivery == "whole":
                        await _send_whole(visit, ask, chunks, send)
                    else:
                        await _send_stream(visit, ask, chunks, send)
        except (QueueFull, EngineBusy) as full:
            raise Refusal(503, "busy", f"no stream free: {full}; try again later", retry_after_s=1) from full
        except CannotSpeak as error:
            raise Refusal(400, "cannot_speak", str(error)) from error

    def _audio(self, visit: Visit, ask: Ask, faults: tuple[Fault, ...], admitted_at: float) -> Chunks:
        """The engine's audio as this server delivers it: spoiled, cut to size, paced, spoiled again."""
        engine, settings = self.service.engine, self.service.settings
        chunks = spoil_source(engine.stream(ask.speech), faults, visit.toll)
        if settings.chunk_ms is not None:
            chunks = rechunked(chunks, engine.sample_rate * settings.chunk_ms // 1000)
        if settings.pace is not None:
            chunks = paced(chunks, settings.pace, admitted_at, engine.sample_rate)
        return spoil_delivery(chunks, faults, visit.toll)


async def _send_stream(visit: Visit, ask: Ask, chunks: Chunks, send: Send) -> None:
    sse = ask.delivery == "sse"
    form = FORMATS[ask.format]
    start = _start(visit, "text/event-stream" if sse else form.content_type)
    encoder = form.encoder()
    number = samples = 0

    async def deliver(encoded: bytes) -> None:
        body = {"type": "http.response.body", "body": _delta(encoded) if sse else encoded, "more_body": True}
        if visit.first_audio_at is None:
            visit.status = 200
            await send(start)
            # Stamped here and nowhere earlier: clients hold this against the kernel's receive stamp.
            visit.first_audio_at = time.monotonic()
        await send(body)

    try:
        async for chunk in chunks:
            if encoded := await encoder.feed(chunk):
                await deliver(encoded)
            number += 1
            samples += len(chunk)
            visit.audio_s = samples / SAMPLE_RATE
    except InjectedCut:
        # Whatever the container still holds goes first: the cut is where the audio was cut, in every format.
        if encoded := await encoder.finish():
            await deliver(encoded)
        raise
    if samples == 0:
        raise _nothing_to_say()
    if encoded := await encoder.finish():
        await deliver(encoded)
    last = _done(len(ask.speech.text), number) if sse else b""
    await send({"type": "http.response.body", "body": last, "more_body": False})
    visit.outcome = "ok"


async def _send_whole(visit: Visit, ask: Ask, chunks: Chunks, send: Send) -> None:
    form = FORMATS[ask.format]
    made = bytearray()
    cut: InjectedCut | None = None
    try:
        async for chunk in chunks:
            made += chunk.tobytes()
    except InjectedCut as error:
        cut = error
    if not made:
        raise _nothing_to_say()
    pcm = np.frombuffer(made, np.int16)
    body = await asyncio.to_thread(form.whole, pcm)
    # A cut answer promises a byte more than it has: it could not be told from a whole one otherwise.
    promised = len(body) if cut is None else len(body) + 1
    start = _start(visit, form.content_type, (b"content-length", str(promised).encode()))
    visit.status = 200
    await send(start)
    visit.first_audio_at = time.monotonic()
    await send({"type": "http.response.body", "body": body, "more_body": cut is not None})
    visit.audio_s = len(pcm) / SAMPLE_RATE
    if cut is not None:
        raise cut
    visit.outcome = "ok"


async def _spoiled_answer(visit: Visit, fault: Fault, send: Send) -> None:
    """Send what the fault puts in the place of speech."""
    visit.toll.add(fault.kind)
    if fault.kind == "error":
        visit.status = fault.status
        await send_refusal(send, Refusal(fault.status, "injected", "injected fault: error"), _echo(visit))
        return
    kind, body = _SPOILED[fault.kind]
    visit.status = 200
    await send(_start(visit, kind, (b"content-length", str(len(body)).encode())))
    await send({"type": "http.response.body", "body": body, "more_body": False})


_SPOILED = {
    "garbage": ("text/html; charset=utf-8", b"<html><title>502</title><h1>injected fault: garbage</h1></html>\n"),
    "refuse_json": ("application/json", b'{"success": false, "error": "injected fault: refuse_json"}'),
}


async def _while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do the work; drop it the moment the client leaves. Raises what the work raises, or ClientGone."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))
    if working.cancelled():
        raise ClientGone
    working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _TooLarge(Refusal):
    """More body than this server reads."""


async def _read(receive: Receive, headers: Headers) -> bytes:
    """The body, or a refusal as soon as it is known to be too large."""
    announced = headers.get("content-length", "0")
    body = bytearray()
    more = True
    while more:
        if len(body) > MAX_BODY_BYTES or int(announced) > MAX_BODY_BYTES:
            raise _TooLarge(413, "body_too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


async def _discard(receive: Receive) -> None:
    """Take a little more of a body already refused: closing at once would reset the connection under the answer."""
    discarded = 0
    try:
        async with asyncio.timeout(_DISCARD_S):
            while discarded < _DISCARD_BYTES:
                message = await receive()
                discarded += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _nothing_to_say() -> Refusal:
    return Refusal(422, "no_speech", "the engine made no audio of this text: it has nothing that can be spoken")


def _start(visit: Visit, content_type: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    fields = [(b"content-type", content_type.encode()), *headers, *_echo(visit)]
    return {"type": "http.response.start", "status": 200, "headers": fields}


def _echo(visit: Visit) -> HeaderList:
    return [] if visit.request_id is None else [(b"x-request-id", visit.request_id.encode("latin-1"))]


def _delta(encoded: bytes) -> bytes:
    event = {"type": "speech.audio.delta", "audio": base64.b64encode(encoded).decode()}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _done(characters: int, chunks: int) -> bytes:
    """The closing event; a "token" here is a character in, a chunk out."""
    usage = {"input_tokens": characters, "output_tokens": chunks, "total_tokens": characters + chunks}
    event = {"type": "speech.audio.done", "usage": usage}
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
