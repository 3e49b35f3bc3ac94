"""Speak WebSocket on a connection that uvicorn hands over: bytes in, messages out. Knows nothing of their meaning.

uvicorn's own WebSocket protocols cost a task and a queue a connection and a task switch a message. Here a message is
handled where its bytes arrive. The handshake and all that is rare are left to websockets' sans-I/O ServerProtocol
(RFC 6455); only whole unfragmented binary messages, which is what audio comes in, are read without it.
"""

import asyncio
import struct
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, cast

from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from gpu_server.refusal import Refusal, error_body

try:
    from websockets.speedups import apply_mask
except ImportError:  # no wheel for this machine
    from websockets.utils import apply_mask

MAX_MESSAGE_BYTES = 1 << 20
_CLOSE_S = 2.0  # for the other side to answer a close
_WRITE_BUFFER_BYTES = 1 << 18
_WHOLE_BINARY = 0x82  # FIN, opcode 2


class Listener(Protocol):
    """Whoever a connection was opened for."""

    def opened(self, connection: "Connection") -> None:
        """The handshake is done; from now on messages may be sent."""

    def message(self, data: bytes, at: float) -> None:
        """A binary message, whose last bytes were read at this monotonic instant."""

    def text(self) -> None:
        """A text message came."""

    def closed(self, by_client: bool) -> None:
        """Nothing more will come or can be sent. Called once."""


Door = Callable[[str, Headers], Listener]  # from path and headers; raises Refusal


def connection_class(door: Door, ping_s: float) -> type[asyncio.Protocol]:
    """What uvicorn's `ws` option wants: a protocol class, here bound to its door."""

    class _Bound(Connection):
        def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
            super().__init__(door, ping_s, server_state)

    return _Bound


class Connection(asyncio.Protocol):
    """One client's connection, from its handshake to its end."""

    def __init__(self, door: Door, ping_s: float, server_state: ServerState) -> None:
        self._door = door
        self._ping_s = ping_s
        self._connections = cast("set[Any]", server_state.connections)
        self._protocol = ServerProtocol(max_size=MAX_MESSAGE_BYTES)
        self._listener: Listener | None = None
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)  # until it is connected, which is at once
        self.answers_pings = True
        self._rest = b""
        self._fragments: list[bytes] | None = None
        self._fragments_are_text = False
        self._heard_at = time.monotonic()
        self._pinged_at: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None  # of a write or a close

    # What the listener calls

    @property
    def is_open(self) -> bool:
        return self._protocol.state is OPEN and not self._transport.is_closing()

    @property
    def client(self) -> str:
        """Where it comes from, as HOST:PORT."""
        address = self._transport.get_extra_info("peername")
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unknown:0"

    def leave_in_peace(self) -> None:
        """Send no pings, and take silence for no sign of death."""
        if self._watch is not None:
            self._watch.cancel()

    def hold(self) -> None:
        """Read nothing more for now; what has been read is still passed on."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def send(self, message: bytes) -> None:
        """Send a binary message; one to a closed connection is dropped."""
        if not self.is_open:
            return
        size = len(message)
        if size < 126:
            head = struct.pack("!BB", _WHOLE_BINARY, size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", _WHOLE_BINARY, 126, size)
        else:
            head = struct.pack("!BBQ", _WHOLE_BINARY, 127, size)
        self._transport.write(head + message)

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; the listener is told at once."""
        if self.is_open:
            self._protocol.send_close(code, reason.encode()[:120].decode(errors="ignore"))
            self._flush()
            self._abort_after(_CLOSE_S)
        self._tell_closed(by_client=False)

    def cut(self) -> None:
        """End the connection without a closing handshake; what has been sent still goes out."""
        self._transport.close()
        self._tell_closed(by_client=False)

    # What asyncio and uvicorn call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        for timer in (self._watch, self._deadline):
            if timer is not None:
                timer.cancel()
        self._tell_closed()

    def shutdown(self) -> None:
        """The server stops."""
        self.close(CloseCode.SERVICE_RESTART, "the server stops")
        self._transport.close()

    def pause_writing(self) -> None:
        """The client does not read: it may have gone without a word."""
        self._abort_after(self._ping_s)

    def resume_writing(self) -> None:
        if self._deadline is not None and self.is_open:
            self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        at = self._heard_at = time.monotonic()
        if self._rest:
            data, self._rest = self._rest + data, b""
        start = 0
        while start < len(data):
            if self._listener is None or not self.is_open:
                self._by_the_book(data[start:], at)
                return
            span = frame_span(data, start)
            if span is None:
                break
            payload_at, end = span
            if end - payload_at > MAX_MESSAGE_BYTES:
                self._by_the_book(data[start:], at)  # which refuses it by its length alone
                return
            if end > len(data):
                break
            if data[start] & 0x0F == Opcode.PING and not self.answers_pings:
                start = end
                continue
            if data[start] == _WHOLE_BINARY and data[start + 1] & 0x80 and self._fragments is None:
                self._listener.message(apply_mask(data[payload_at:end], data[payload_at - 4 : payload_at]), at)
            else:
                self._by_the_book(data[start:end], at)
            start = end
        self._rest = data[start:]

    def eof_received(self) -> bool:
        return False

    # Inside

    def _by_the_book(self, data: bytes, at: float) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._shake_hands(event)
            elif isinstance(event, Frame):
                self._take_frame(event, at)
        self._flush()
        if self._protocol.parser_exc is not None:
            self._tell_closed()
            self._abort_after(_CLOSE_S)

    def _shake_hands(self, request: Request) -> None:
        response = self._protocol.accept(request)
        listener = None
        if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            try:
                listener = self._door(request.path, request.headers)
            except Refusal as refusal:
                response = _refused(refusal)
        self._protocol.send_response(response)
        self._flush()
        if listener is not None:
            self._listener = listener
            self._watch = asyncio.get_running_loop().call_later(self._ping_s, self._look_for_life)
            listener.opened(self)

    def _take_frame(self, frame: Frame, at: float) -> None:
        if frame.opcode is Opcode.CLOSE:
            self._tell_closed()
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if self._fragments is None:
                self._fragments = []
                self._fragments_are_text = frame.opcode is Opcode.TEXT
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                message, self._fragments = b"".join(self._fragments), None
                self._pass_on(message, at)

    def _pass_on(self, message: bytes, at: float) -> None:
        if self._listener is None or not self.is_open:
            return
        if self._fragments_are_text:
            self._listener.text()
        else:
            self._listener.message(message, at)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._end()

    def _end(self) -> None:
        """Close this side and take what still comes: with unread data, the last words would be lost to a reset."""
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            self._abort_after(_CLOSE_S)
        else:
            self._transport.close()

    def _look_for_life(self) -> None:
        """Ping who has been silent for long; whoever stays silent is gone. Audio is sign enough of life."""
        now = time.monotonic()
        if self._pinged_at is not None and self._heard_at <= self._pinged_at:
            self._abort()
            return
        self._pinged_at = None
        if now - self._heard_at >= self._ping_s and self.is_open:
            self._pinged_at = now
            self._protocol.send_ping(b"")
            self._flush()
        self._watch = asyncio.get_running_loop().call_later(self._ping_s, self._look_for_life)

    def _abort_after(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._abort)

    def _abort(self) -> None:
        """The client has gone, or does not answer."""
        self._transport.abort()
        self._tell_closed()

    def _tell_closed(self, by_client: bool = True) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.closed(by_client)


def frame_span(data: bytes, start: int) -> tuple[int, int] | None:
    """Where the payload of the frame that begins at `start` begins and ends; None while its head is not whole.

    The payload may end beyond the data at hand. RFC 6455, section 5.2.
    """
    left = len(data) - start
    if left < 2:
        return None
    length = data[start + 1] & 0x7F
    payload_at = start + 2
    if length == 126:
        if left < 4:
            return None
        length = data[start + 2] << 8 | data[start + 3]
        payload_at += 2
    elif length == 127:
        if left < 10:
            return None
        length = int.from_bytes(data[start + 2 : start + 10], "big")
        payload_at += 8
    if data[start + 1] & 0x80:
        payload_at += 4
    return payload_at, payload_at + length


def _refused(refusal: Refusal) -> Response:
    body = error_body(refusal)
    headers = Headers({"content-type": "application/json", "content-length": str(len(body)), "connection": "close"})
    if refusal.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(refusal.retry_after_s)
    return Response(refusal.status, HTTPStatus(refusal.status).phrase, headers, body)
