"""One WebSocket connection over a Link: handshake, messages out, messages and their arrivals in.

Knows nothing of audio or turns. Bytes are kept with their stamps as they come and parsed by whoever hears.
"""

import os
import re
import ssl
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

import websocket
from gevent.event import Event
from websocket._handshake import CookieJar

from workers import failures
from workers.clients.codecs import Codec
from workers.clients.http_connection import BadTarget
from workers.clients.inbox import Arrival, Inbox
from workers.clients.link import Link
from workers.clients.rtvi import one_line
from workers.clients.switchboard import Switchboard
from workers.clients.websocket import CLOSE, PING, PONG, BadFrame, Frames, Message, close_reason, frame
from workers.events import Audio
from workers.failures import TurnFailed
from workers.manifest import without_credentials

MOST_UNSENT_BYTES = 256 * 1024  # 8 s of 16 kHz audio that the peer does not read
_LONGEST_HEAD = 16 * 1024  # of an answer to the handshake: websocket-client reads it byte by byte
_LONGEST_ANSWER = 1 << 20
_NORMAL = 1000
_SHORTEST_SECRET = 3  # letters of a query's value: less is in every other word
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype|html|head|body|\?xml)\b", re.IGNORECASE)


class CallTarget(NamedTuple):
    """Where calls go: one for all of a worker's users."""

    url: SplitResult
    host: str
    port: int
    tls: ssl.SSLContext | None
    path: str
    token: str | None

    def address(self, stream_id: str) -> str:
        """The URL of one stream."""
        query = f"?{self.url.query}" if self.url.query else ""
        path = self.path.replace("{stream_id}", quote(stream_id, safe=""))
        return f"{self.url.scheme}://{self.url.netloc.rpartition('@')[2]}{path}{query}"


def call_target(host: str, path: str, insecure: bool, token: str | None) -> CallTarget:
    """Check where to call and prepare TLS once; `path` counts where the host names none. Raises BadTarget."""
    try:
        url = urlsplit(host)
        port = url.port or (443 if url.scheme == "wss" else 80)
    except ValueError as error:
        raise BadTarget(f"--host {re.sub('//.*@', '//', host)}: {error}") from None
    if "@" in url.netloc:  # the address is written into the run
        raise BadTarget(f"--host {url.scheme}://{url.hostname}: put the token into CICADA_TOKEN, not into the address")
    if url.scheme not in ("ws", "wss") or not url.hostname:
        raise BadTarget(f"--host {host}: voice agents are called at ws://HOST:PORT or wss://HOST:PORT")
    tls = None
    if url.scheme == "wss":
        tls = ssl.create_default_context()
        if insecure:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return CallTarget(url, url.hostname, port, tls, url.path if url.path.strip("/") else path, token)


class Line:
    """One connection. `gone` is why it is over, None while it is up."""

    __slots__ = (
        "_changed",
        "_frames",
        "_link",
        "address",
        "came",
        "clock",
        "gone",
        "local_address",
        "ready_at",
        "send",
    )

    def __init__(self, link: Link, address: str) -> None:
        self._link = link
        self._frames = Frames()
        self._changed: Event | None = None  # while a greenlet waits for what comes
        self.local_address = link.local_address
        self.address = address
        self.clock, self.ready_at = link.clock, time.monotonic()
        self.gone: TurnFailed | None = None
        self.came = Inbox()
        self.send = link.send  # called for each chunk

    @classmethod
    def connect(
        cls, where: CallTarget, stream_id: str, timeout_s: float, board: Switchboard, *, waits: bool = False
    ) -> "Line":
        """Connect and shake hands, from a greenlet. Raises TurnFailed.

        waits: `await_more` is called next, and `hear_in_bulk` when enough has come.
        """
        deadline = time.monotonic() + timeout_s
        try:
            link = Link.connect(
                where.host,
                where.port,
                timeout_s=timeout_s,
                tls=where.tls,
                board=board,
                most_unsent_bytes=MOST_UNSENT_BYTES,
            )
        except OSError as error:
            raise failures.of_connecting(error, where.host, where.port) from None
        address = where.address(stream_id)
        early = _Handshake(link, deadline)
        try:
            _shake_hands(early, address, where.token)
        except BaseException:
            link.close()
            raise
        line = cls(link, address)
        if waits:
            line._changed = Event()
        for data, arrival in early.rest():
            line.receive(data, arrival)
        if early.error is not None or link.shut:  # the server was gone as soon as it had accepted
            line.closed(early.error)
        else:
            link.expect(line)
            if not waits:
                line.hear_in_bulk()
        return line

    def await_more(self, until: float) -> bool:
        """From a greenlet: wait until something has come, or the line is gone; False where neither did in time."""
        assert self._changed is not None
        if not self.came and self.gone is None:
            self._changed.clear()
            self._changed.wait(max(0.0, until - time.monotonic()))
        return bool(self.came) or self.gone is not None

    def hear_in_bulk(self) -> None:
        """From now on nobody is woken by what comes: it waits in `came`."""
        self._changed = None
        if not self._link.shut:
            self.came.plain = len(self.came.sizes)
            self._link.inbox = self.came

    # ---- in the hub

    def receive(self, data: bytes, arrival: Arrival) -> None:
        self.came.add(data, *arrival)
        if self._changed is not None:
            self._changed.set()

    def closed(self, error: OSError | None) -> None:
        if self.gone is None:
            self.gone = _broken(error)
        if self._changed is not None:
            self._changed.set()

    # ---- whoever hears

    def unseal(self) -> None:
        """Make plain what came over TLS, before it is cut or parsed."""
        self._link.unseal()

    def cut(self, codec: Codec) -> Audio | None:
        """The samples of what came, where each read brought one audio message that is like the last one.

        None where it is otherwise: then it has to be parsed. Nearly all that comes can be cut, at a tenth of the cost.
        """
        framing, size = self._frames.usual
        came = self.came
        count = len(came.sizes)
        if came.sizes.count(size) != count:
            return None
        return codec.cut(came.data, came.used, framing, count)

    def parse(self, data: bytes) -> Sequence[Message]:
        """Messages that `data` completes. Bytes that are no WebSocket's end the call; what came before them counts."""
        try:
            return self._frames.feed(data)
        except BadFrame as error:
            self._breach(error)
            return error.before

    def _breach(self, error: BadFrame) -> None:
        self._hang_up(1002, TurnFailed("protocol_error", "bad_websocket", f"no WebSocket message: {error}"))

    def control(self, opcode: int, payload: bytes) -> None:
        """Answer a control message."""
        if opcode == PING:
            self.put(frame(PONG, payload, os.urandom(4)))
        elif opcode == CLOSE:
            try:
                code, text = close_reason(payload)
            except BadFrame as error:
                self._breach(error)
                return
            why = f": {text[:200]}" if text else ""
            hint = _CLOSE_HINTS.get(code, "")
            self._hang_up(
                code if code != 1005 else _NORMAL,
                TurnFailed("disconnected", f"ws_closed_{code}", f"the server closed with {code}{why}{hint}"),
            )

    def put(self, data: bytes) -> None:
        """Send bytes that are no chunk; a line that broke meanwhile says so in `gone`."""
        if self.gone is not None:
            return
        try:
            self._link.send(data)
        except OSError as error:
            self.broke(error)

    def broke(self, error: OSError) -> None:
        """Sending failed. What had come until then is still to be heard."""
        self._link.fail(error)  # what lies sealed may say why
        self.closed(error)

    def _hang_up(self, code: int, why: TurnFailed) -> None:
        if self.gone is None or self.gone.kind in ("ws_closed_1006", "connection_broken"):
            self.gone = why
        self._say_goodbye(code)

    def _say_goodbye(self, code: int) -> None:
        if not self._link.shut:
            try:
                self._link.send(frame(CLOSE, code.to_bytes(2, "big"), os.urandom(4)))
            except OSError:  # the other end was quicker
                pass
            self._link.close()

    def close(self, last_words: Sequence[tuple[int, bytes]] = ()) -> None:
        """Hang up: what the dialect says last, then a close frame."""
        for opcode, payload in last_words:
            self.put(frame(opcode, payload, os.urandom(4)))
        self._say_goodbye(_NORMAL)


def _broken(error: OSError | None) -> TurnFailed:
    if isinstance(error, TimeoutError):
        return TurnFailed("disconnected", "half_open", f"the connection is dead: {error.strerror or error}")
    if error is not None:
        return TurnFailed("disconnected", "connection_broken", f"the connection broke: {error.strerror or error}")
    line = "the server closed the connection without a close message (1006); check the server's log"
    return TurnFailed("disconnected", "ws_closed_1006", line)


_CLOSE_HINTS = {
    1011: "; the server says that it failed: check its log",
    1013: "; the server takes no more calls (pipecat's own transport takes one client at a time)",
}


def _shake_hands(pipe: "_Handshake", address: str, token: str | None) -> None:
    header = [f"Authorization: Bearer {token}"] if token else []
    kinds = ("user-agent: cicada",)
    shown = _shown(address)
    line = websocket.WebSocket(skip_utf8_validation=True)
    CookieJar.jar.clear()  # it is the whole process's: a caller's cookie would bind all others to its server
    try:
        line.connect(  # type: ignore[no-untyped-call]
            address, socket=pipe, header=[*header, *kinds], suppress_origin=True, redirect_limit=0
        )
        status = line.getstatus()
        if status != 101:
            raise TurnFailed("refused", f"http_{status}", f"HTTP {status} instead of a WebSocket at {shown}")
    except websocket.WebSocketBadStatusException as error:
        raise _refused(error.status_code, error.resp_body, address) from None
    except (websocket.WebSocketTimeoutException, TimeoutError):
        if (refusal := pipe.refusal()) is not None:
            raise _refused(*refusal, address) from None
        line_ = f"no WebSocket handshake with {shown} in time (connect_timeout_s)"
        raise TurnFailed("timed_out", "connect_timeout", line_) from None
    except (websocket.WebSocketConnectionClosedException, ConnectionError) as error:
        if (refusal := pipe.refusal()) is not None:
            raise _refused(*refusal, address) from None
        line_ = f"the server closed the connection in the WebSocket handshake: {error}"
        raise TurnFailed("disconnected", "closed_before_answer", line_) from None
    except (websocket.WebSocketException, ValueError, OSError) as error:
        told = line.handshake_response
        if told is not None and 300 <= told.status < 400:
            moved = one_line(told.headers.get("location"))
            line_ = f"HTTP {told.status} instead of a WebSocket at {shown}: it has moved to {_unsaid(moved, address)}"
            raise TurnFailed("refused", f"http_{told.status}", line_) from None
        line_ = f"what answers at {shown} speaks no WebSocket: {_unsaid(' '.join(str(error).split()), address)[:200]}"
        raise TurnFailed("protocol_error", "not_websocket", line_) from None


def _refused(status: int | None, body: bytes | None, address: str) -> TurnFailed:
    shown = _shown(address)
    if status is None:  # an empty line is all that came
        return TurnFailed("protocol_error", "not_websocket", f"what answers at {shown} speaks no HTTP")
    words = " ".join((body or b"").decode("utf-8", "replace").split())
    words = "a web page" if _WEB_PAGE.match(body or b"") else _unsaid(words, address)[:200]
    hint = _STATUS_HINTS.get(status, "")
    line_ = f"HTTP {status} instead of a WebSocket at {shown}{hint}: {words or 'no text'}"
    return TurnFailed("refused", f"http_{status}", line_)


def _shown(address: str) -> str:
    """The address as it may be told: a query may hold a secret, or a prompt."""
    return without_credentials(address).partition("?")[0]


def _unsaid(words: str, address: str) -> str:
    """What a server says, without what the address's query holds: some repeat all that they were asked."""
    query = urlsplit(address).query
    sent = {query, *(part.partition("=")[2] for part in query.split("&"))}
    sent |= {" ".join(value.split()) for _, value in parse_qsl(query)}
    for value in sorted(sent, key=len, reverse=True):
        if len(value) >= _SHORTEST_SECRET:
            words = words.replace(value, "[redacted]")
    return words


_STATUS_HINTS = {
    401: " (unauthorised: put the token into CICADA_TOKEN or .env)",
    403: " (forbidden, or no such path: check --path)",
    404: " (no such path: check --host and --path)",
    503: " (the server is full)",
}


class _Handshake:
    """What websocket-client's handshake needs of a socket, on a Link: blocking reads for a greenlet."""

    def __init__(self, link: Link, deadline: float) -> None:
        self._link, self._deadline = link, deadline
        self._arrived: list[tuple[bytes, Arrival]] = []
        self._line = bytearray()
        self._all = bytearray()  # that was read
        self._read = 0
        self._changed = Event()
        self.over = False
        self.error: OSError | None = None
        link.expect(self)

    def receive(self, data: bytes, arrival: Arrival) -> None:
        self._arrived.append((data, arrival))
        self._changed.set()

    def closed(self, error: OSError | None) -> None:
        self.over, self.error = True, error
        self._changed.set()

    def send(self, data: bytes) -> int:
        self._link.send(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        while not self._line:
            if self._arrived:
                self._line += self._arrived[0][0]
                continue
            if self.over:
                if self.error is not None:
                    raise self.error
                return b""
            self._changed.clear()
            if not self._changed.wait(max(0.0, self._deadline - time.monotonic())):
                raise TimeoutError("timed out")
        if self._read > (limit := _LONGEST_HEAD if size == 1 else _LONGEST_ANSWER):
            raise ValueError(f"an answer of more than {limit} bytes")
        piece = bytes(self._line[:size])
        self._read += len(piece)
        self._all += piece
        del self._line[:size]
        if not self._line:
            self._arrived.pop(0)
        return piece

    def refusal(self) -> tuple[int, bytes] | None:
        """Status and what came of its page, where the head of a refusal is there."""
        head, end, page = bytes(self._all).partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/\d\.\d (\d{3})\b", head)
        return (int(found.group(1)), page) if end and found and found.group(1) != b"101" else None

    def rest(self) -> list[tuple[bytes, Arrival]]:
        """What came behind the handshake, with its arrivals."""
        if self._line:
            self._arrived[0] = (bytes(self._line), self._arrived[0][1])
        return self._arrived

    def gettimeout(self) -> float:
        return max(0.001, self._deadline - time.monotonic())

    def settimeout(self, seconds: float | None) -> None:
        """The deadline is given."""

    def shutdown(self, how: int) -> None:
        """Nothing: the link is closed by its owner."""

    def close(self) -> None:
        """Nothing: the link is closed by its owner."""
