"""A WebSocket call over real sockets, against servers that do every other thing than what they should."""

import base64
import hashlib
import itertools
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import gevent
import pytest
import trustme
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from tests.test_link import Peer, hold, hub_errors, reset  # noqa: F401 - hub_errors is a fixture
from workers.clients import line as module
from workers.clients.http_connection import BadTarget
from workers.clients.line import CallTarget, Line, call_target
from workers.clients.switchboard import switchboard
from workers.clients.websocket import BINARY, CLOSE, PING, Message, frame
from workers.failures import TurnFailed

WITHIN_S = 10.0
PATH = "/ws/{stream_id}"
TOKEN = "tok-s3cret"
Act = Callable[[socket.socket], object]


def asked(sock: socket.socket) -> bytes:
    """The client's request, to its empty line."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        piece = sock.recv(1)
        assert piece, "the client hung up in its request"
        request += piece
    return request


def accepting(request: bytes) -> bytes:
    found = re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
    assert found
    digest = hashlib.sha1(found.group(1) + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + base64.b64encode(digest)
        + b"\r\n\r\n"
    )


def upgraded(*acts: Act) -> Act:
    """Shake hands well, then act."""

    def act(sock: socket.socket) -> None:
        sock.sendall(accepting(asked(sock)))
        for one in acts:
            one(sock)

    return act


def writing(*parts: bytes) -> Act:
    def act(sock: socket.socket) -> None:
        for part in parts:
            sock.sendall(part)

    return act


def answering(answer: bytes, then: Act = lambda _: None) -> Act:
    """Answer the request with these bytes."""

    def act(sock: socket.socket) -> None:
        asked(sock)
        sock.sendall(answer)
        then(sock)

    return act


def from_server(opcode: int, payload: bytes = b"") -> bytes:
    """A frame as servers send them: without a mask."""
    size = len(payload)
    head = bytes((0x80 | opcode, size)) if size < 126 else bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
    return head + payload


def closing(code: int | None, reason: bytes = b"") -> bytes:
    return from_server(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def where(
    peer: Peer, path: str = PATH, token: str | None = None, scheme: str = "ws", insecure: bool = False
) -> CallTarget:
    return call_target(f"{scheme}://127.0.0.1:{peer.port}", path, insecure, token)


@contextmanager
def called(*acts: Act, token: str | None = None) -> Iterator[Line]:
    """A line to a peer that plays these acts, one a connection."""
    peer = Peer(*acts)
    try:
        line = Line.connect(where(peer, token=token), "stream-1", WITHIN_S, switchboard())
        try:
            yield line
        finally:
            line.close()
        peer.finished()
    finally:
        peer.close()


def failing(*acts: Act, timeout_s: float = WITHIN_S, token: str | None = None, query: str = "") -> TurnFailed:
    """What a call to this peer fails with."""
    peer = Peer(*acts)
    target = where(peer, token=token)
    target = target._replace(url=target.url._replace(query=query))
    try:
        with pytest.raises(TurnFailed) as caught:
            Line.connect(target, "stream-1", timeout_s, switchboard())
    finally:
        peer.close()
    failure = caught.value
    assert "\n" not in str(failure)
    assert TOKEN not in str(failure)
    return failure


def heard(line: Line, enough: Callable[[list[Message]], bool]) -> list[Message]:
    """Messages as they come, control messages answered; until there are enough or the line is gone."""
    found: list[Message] = []
    with gevent.Timeout(WITHIN_S):
        while True:
            gone = line.gone is not None
            line.unseal()
            for data, _ in line.came.reads():
                for opcode, payload in line.parse(data):
                    found.append((opcode, payload))
                    if opcode >= CLOSE:
                        line.control(opcode, payload)
            line.came.empty()
            if enough(found) or gone:
                return found
            gevent.sleep(0.001)


def until_gone(line: Line) -> TurnFailed:
    heard(line, lambda _: line.gone is not None)
    assert line.gone is not None
    assert "\n" not in str(line.gone)
    return line.gone


# ------------------------------------------------------------------------------------ the handshake


def cuts(answer: bytes) -> list[list[bytes]]:
    """An answer in one piece, byte by byte, and cut in two at odd places."""
    ends = (1, 9, 12, 13, len(answer) - 3, len(answer) - 1)
    return [[answer], [bytes((one,)) for one in answer], *([answer[:at], answer[at:]] for at in ends)]


@pytest.mark.parametrize("way", range(8))
def test_a_handshake_cut_anywhere(way: int) -> None:
    def act(sock: socket.socket) -> None:
        for part in cuts(accepting(asked(sock)))[way]:
            sock.sendall(part)
        sock.sendall(from_server(BINARY, b"hello"))
        hold(sock)

    with called(act) as line:
        assert heard(line, bool) == [(BINARY, b"hello")]
        assert line.gone is None


@pytest.mark.parametrize("last_half", [True, False])
def test_what_comes_right_behind_the_handshake(last_half: bool) -> None:
    """Servers that greet at once put it into the same segment; part of a message may be in it as well."""
    first, second, third = (from_server(BINARY, bytes([k]) * 700) for k in (1, 2, 3))
    cut = 350 if last_half else 0

    def act(sock: socket.socket) -> None:
        sock.sendall(accepting(asked(sock)) + first + second + third[:cut])
        sock.sendall(third[cut:])
        hold(sock)

    with called(act) as line:
        found = heard(line, lambda messages: len(messages) >= 3)
        assert found == [(BINARY, bytes([k]) * 700) for k in (1, 2, 3)]


def test_waiting_for_a_server_that_is_gone_as_soon_as_it_has_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    shake_hands = module._shake_hands

    def until_shut(early: "module._Handshake", address: str, token: str | None) -> None:
        shake_hands(early, address, token)
        with gevent.Timeout(WITHIN_S):
            while not early.over:
                gevent.sleep(0.001)

    monkeypatch.setattr(module, "_shake_hands", until_shut)
    peer = Peer(upgraded())
    try:
        line = Line.connect(where(peer), "stream-1", WITHIN_S, switchboard(), waits=True)
        assert line.await_more(0.0)
        line.hear_in_bulk()
        assert line.gone is not None
        assert line.gone.kind == "ws_closed_1006"
        line.close()
    finally:
        peer.close()


def test_what_comes_behind_the_handshake_has_an_arrival() -> None:
    def act(sock: socket.socket) -> None:
        sock.sendall(accepting(asked(sock)) + from_server(BINARY, b"hello"))
        hold(sock)

    with called(act) as line:
        with gevent.Timeout(WITHIN_S):
            while not line.came:
                gevent.sleep(0.001)
        line.unseal()
        ((_, arrival), *_) = line.came.reads()
        assert arrival.empty_at <= arrival.at <= line.ready_at + WITHIN_S


def test_a_greeting_and_a_goodbye_with_the_handshake() -> None:
    """All that was said counts, though the connection is over before anybody could listen."""
    greeting = from_server(BINARY, b"hello") + closing(1013, b"busy")
    with called(lambda sock: sock.sendall(accepting(asked(sock)) + greeting)) as line:
        found = heard(line, lambda messages: len(messages) >= 2)
        assert found[0] == (BINARY, b"hello")
        assert line.gone is not None
        assert line.gone.kind == "ws_closed_1013"


def test_the_request() -> None:
    requests: list[bytes] = []

    def act(sock: socket.socket) -> None:
        request = asked(sock)
        requests.append(request)
        sock.sendall(accepting(request))
        hold(sock)

    with called(act, token=TOKEN) as line:
        assert line.address.endswith("/ws/stream-1")
        assert TOKEN not in line.address
    head, *lines = requests[0].decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines if one)}
    assert head == "GET /ws/stream-1 HTTP/1.1"
    assert fields["authorization"] == f"Bearer {TOKEN}"
    assert (fields["upgrade"].lower(), fields["sec-websocket-version"]) == ("websocket", "13")
    assert "sec-websocket-extensions" not in fields, "a compressed message could not be cut in bulk"
    assert "origin" not in fields


def test_without_a_token_there_is_no_authorization() -> None:
    requests: list[bytes] = []

    def act(sock: socket.socket) -> None:
        requests.append(asked(sock))
        sock.sendall(accepting(requests[0]))
        hold(sock)

    with called(act):
        pass
    assert b"authorization" not in requests[0].lower()


def test_a_stream_id_is_quoted() -> None:
    target = call_target("ws://h:8100", PATH, False, None)
    assert target.address("a b/c?d#e") == "ws://h:8100/ws/a%20b%2Fc%3Fd%23e"


def refusal(status: int, body: bytes = b"", *fields: bytes) -> bytes:
    head = [b"HTTP/1.1 %d Because" % status, b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "HTTP 400"), (401, "CICADA_TOKEN"), (403, "--path"), (404, "--path"), (426, "HTTP 426"),
        (429, "HTTP 429"), (500, "HTTP 500"), (503, "full"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_with_its_status_and_words(status: int, hint: str) -> None:
    failure = failing(answering(refusal(status, b"no such\r\n  room")), token=TOKEN)
    assert (failure.outcome, failure.kind) == ("refused", f"http_{status}")
    assert hint in str(failure)
    assert "no such room" in str(failure)


def test_a_server_that_repeats_the_address_does_not_bring_its_secret_into_the_run() -> None:
    """As websockets, aiohttp and our own server may do in a 404: the query, its values as sent or as meant."""
    said = b"no WebSocket at '/nope?token=QSEC%2F1&b=2', with token QSEC/1"
    for answer in (refusal(404, said), refusal(302, b"", b"Location: ws://elsewhere/nope?token=QSEC%2F1&b=2")):
        failure = failing(answering(answer), query="token=QSEC%2F1&b=2")
        assert "QSEC" not in str(failure)
        assert "[redacted]" in str(failure)


def test_a_web_page_is_not_repeated() -> None:
    page = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
    failure = failing(answering(refusal(404, page)))
    assert str(failure).endswith(": a web page")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_refusal(status: int) -> None:
    """It is not followed: what would be measured is not what was asked for."""
    failure = failing(answering(refusal(status, b"", b"Location: ws://elsewhere/ws")))
    assert (failure.outcome, failure.kind) == ("refused", f"http_{status}")


@pytest.mark.parametrize("status", [200, 204])
def test_a_page_is_a_refusal(status: int) -> None:
    failure = failing(answering(refusal(status, b"<html>" if status == 200 else b"")))
    assert (failure.outcome, failure.kind) == ("refused", f"http_{status}")


def test_a_refusal_with_a_long_page() -> None:
    failure = failing(answering(refusal(404, b"<p>" + b"x" * 200_000), hold))
    assert (failure.outcome, failure.kind) == ("refused", "http_404")
    assert len(str(failure)) < 500


@pytest.mark.parametrize("then", ["closes", "waits"])
def test_a_refusal_whose_page_does_not_come_whole(then: str) -> None:
    answer = b"HTTP/1.1 503 Full\r\nContent-Length: 1000\r\n\r\ntoo many"
    failure = failing(answering(answer, hold if then == "waits" else lambda _: None), timeout_s=0.5)
    assert (failure.outcome, failure.kind) == ("refused", "http_503")


def test_a_refusal_without_a_length() -> None:
    failure = failing(answering(b"HTTP/1.1 403 Forbidden\r\n\r\nno"))
    assert (failure.outcome, failure.kind) == ("refused", "http_403")


GARBAGE = (
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x16" + b"\r\n\r\n",
    b"\r\n\r\n",
    b"HTTP/1.1 abc Nonsense\r\n\r\n",
    b"HTTP/1.1\r\n\r\n",
    b"\xff\xfe\xfd\r\n\r\n",
    b"220 mail ESMTP\r\nno colon here\r\n\r\n",
)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_http_is_not_websocket(garbage: bytes) -> None:
    failure = failing(answering(garbage))
    assert (failure.outcome, failure.kind) == ("protocol_error", "not_websocket")


def test_an_answer_without_an_end() -> None:
    """Neither in one header nor in many: memory is not what it may cost."""

    def endless(sock: socket.socket) -> None:
        asked(sock)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
        try:
            for k in itertools.count():
                sock.sendall(b"X-%d: " % k + b"y" * 4_000 + b"\r\n")
        except OSError:
            return

    failure = failing(endless)
    assert (failure.outcome, failure.kind) == ("protocol_error", "not_websocket")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"Accept: \S+", b"Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        (rb"Sec-WebSocket-Accept: \S+\r\n", b""),
        (rb"Upgrade: websocket\r\n", b""),
        (rb"Connection: Upgrade", b"Connection: close"),
    ],
)
def test_a_wrong_upgrade_is_not_websocket(old: bytes, new: bytes) -> None:
    def act(sock: socket.socket) -> None:
        sock.sendall(re.sub(old, new, accepting(asked(sock))))
        hold(sock)

    failure = failing(act)
    assert (failure.outcome, failure.kind) == ("protocol_error", "not_websocket")


def test_silence_in_the_handshake() -> None:
    failure = failing(hold, timeout_s=0.3)
    assert (failure.outcome, failure.kind) == ("timed_out", "connect_timeout")


def test_a_handshake_that_trickles_ends_in_time_too() -> None:
    """A byte now and then is no progress: the deadline is one for the whole."""
    stop = threading.Event()

    def trickle(sock: socket.socket) -> None:
        asked(sock)
        try:
            for one in itertools.cycle(b"HTTP/1.1 101 Switching Protocols"):
                sock.sendall(bytes((one,)))
                if stop.wait(0.02):
                    return
        except OSError:
            return

    failure = failing(trickle, timeout_s=0.3)
    stop.set()
    assert (failure.outcome, failure.kind) == ("timed_out", "connect_timeout")


def test_a_connection_that_ends_in_the_handshake() -> None:
    failure = failing(lambda sock: asked(sock) and None)
    assert (failure.outcome, failure.kind) == ("disconnected", "closed_before_answer")
    failure = failing(answering(b"HTTP/1.1 101 Swi"))
    assert (failure.outcome, failure.kind) == ("disconnected", "closed_before_answer")

    def resetting(sock: socket.socket) -> None:
        asked(sock)
        reset(sock)

    failure = failing(resetting)
    assert (failure.outcome, failure.kind) == ("disconnected", "closed_before_answer")


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with pytest.raises(TurnFailed) as caught:
        Line.connect(call_target(f"ws://127.0.0.1:{port}", PATH, False, None), "s", 5.0, switchboard())
    assert (caught.value.outcome, caught.value.kind) == ("refused", "connection_refused")


# ------------------------------------------------------------------------------------ TLS


@pytest.mark.parametrize("insecure", [True, False])
def test_tls(insecure: bool) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    peer = Peer(upgraded(writing(from_server(BINARY, b"hello")), hold), tls=context)
    target = where(peer, scheme="wss", insecure=insecure)
    try:
        if insecure:
            line = Line.connect(target, "s", WITHIN_S, switchboard())
            assert line.address.startswith("wss://127.0.0.1:")
            assert heard(line, bool) == [(BINARY, b"hello")]
            line.close()
        else:
            with pytest.raises(TurnFailed) as caught:
                Line.connect(target, "s", WITHIN_S, switchboard())
            assert (caught.value.outcome, caught.value.kind) == ("refused", "tls_failure")
            assert "--insecure" in str(caught.value)
    finally:
        peer.close()


def test_a_trusted_certificate_needs_no_insecure() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    peer = Peer(upgraded(writing(from_server(BINARY, b"hello"), closing(1000)), hold), tls=context)
    target = where(peer, scheme="wss")
    assert target.tls is not None
    authority.configure_trust(target.tls)
    try:
        line = Line.connect(target, "s", WITHIN_S, switchboard())
        assert until_gone(line).kind == "ws_closed_1000"
    finally:
        peer.close()


def test_tls_where_there_is_none() -> None:
    peer = Peer(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    try:
        with pytest.raises(TurnFailed) as caught:
            Line.connect(where(peer, scheme="wss", insecure=True), "s", WITHIN_S, switchboard())
        assert caught.value.kind == "tls_failure"
    finally:
        peer.close()


# ------------------------------------------------------------------------------------ the end


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (1000, "", "1000"),
        (1000, "all said", "all said"),
        (1001, "going down", "going down"),
        (1011, "", "check its log"),
        (1013, "try later", "takes no more calls"),
        (4000, "ünïcode", "ünïcode"),
        (None, "", "1005"),
    ],
)
def test_a_close_with_its_code(code: int | None, reason: str, words: str) -> None:
    replies: list[bytes] = []

    def act(sock: socket.socket) -> None:
        sock.sendall(closing(code, reason.encode()))
        while piece := sock.recv(1000):
            replies.append(piece)

    with called(upgraded(act)) as line:
        gone = until_gone(line)
        assert (gone.outcome, gone.kind) == ("disconnected", f"ws_closed_{code or 1005}")
        assert words in str(gone)
    # Answered with the same code, once, under a mask: RFC 6455, 5.5.1.
    reply = b"".join(replies)
    assert (reply[0], reply[1], len(reply)) == (0x88, 0x82, 8)
    assert bytes(a ^ b for a, b in zip(reply[6:], reply[2:4], strict=True)) == (code or 1000).to_bytes(2, "big")


def test_a_long_reason_is_cut() -> None:
    with called(upgraded(writing(closing(1011, b"x" * 123)), hold)) as line:
        assert len(str(until_gone(line))) < 400


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_an_end_without_a_word_is_1006(end: str) -> None:
    def act(sock: socket.socket) -> None:
        sock.sendall(from_server(BINARY, b"last words"))
        if end == "rst":
            sock.recv(1)  # until the client has heard them: a reset throws away what was not read
            reset(sock)

    with called(upgraded(act)) as line:
        assert heard(line, bool) == [(BINARY, b"last words")]
        if end == "rst":
            line.put(frame(BINARY, b"x"))
        gone = until_gone(line)
        assert gone.outcome == "disconnected"
        assert gone.kind == ("ws_closed_1006" if end == "fin" else "connection_broken")


def test_a_close_message_counts_though_the_connection_ended_first() -> None:
    """Both are there before anybody parses: the message says why."""
    with called(upgraded(writing(from_server(BINARY, b"a"), closing(1013)))) as line:
        with gevent.Timeout(WITHIN_S):
            while line.gone is None:
                gevent.sleep(0.001)
        assert line.gone.kind == "ws_closed_1006"
        assert until_gone(line).kind == "ws_closed_1013"


def test_what_comes_after_a_close_is_ignored() -> None:
    late = [from_server(BINARY, b"too late"), b"\xff" * 50, closing(1011)]
    with called(upgraded(writing(closing(1000) + b"".join(late)))) as line:
        found = heard(line, lambda _: False)
        assert found == [(CLOSE, b"\x03\xe8")]
        assert line.gone is not None
        assert line.gone.kind == "ws_closed_1000"


@pytest.mark.parametrize(
    "bad",
    [
        b"\x82\x83mask\x01\x02\x03",
        b"\xc2\x01x",
        b"\x83\x00",
        b"\x80\x00",
        b"\x88\x01\x03",
        b"\x88\x02\x03\xee",
        b"\x88\x04\x03\xe8\xff\xfe",
        b"\x82\x7f" + (1 << 40).to_bytes(8, "big"),
    ],
    ids=["masked", "reserved", "opcode", "continuation", "one byte", "1006", "no utf-8", "huge"],
)
def test_a_breach_ends_the_call_and_what_came_before_counts(bad: bytes) -> None:
    with called(upgraded(writing(from_server(BINARY, b"good") + bad + from_server(BINARY, b"after")), hold)) as line:
        found = heard(line, lambda _: line.gone is not None)
        assert found[0] == (BINARY, b"good")
        assert (BINARY, b"after") not in found
        assert line.gone is not None
        assert (line.gone.outcome, line.gone.kind) == ("protocol_error", "bad_websocket")


@pytest.mark.parametrize("payload", [b"", b"are you there", bytes(range(125))])
def test_a_ping_is_answered_with_its_payload(payload: bytes) -> None:
    answers: list[bytes] = []

    def act(sock: socket.socket) -> None:
        sock.sendall(from_server(PING, payload))
        answer = b""
        while len(answer) < 6 + len(payload):
            answer += sock.recv(1000)
        answers.append(answer)

    with called(upgraded(act, hold)) as line:
        assert heard(line, bool) == [(PING, payload)]
        with gevent.Timeout(WITHIN_S):
            while not answers:
                gevent.sleep(0.001)
        answer = answers[0]
        assert (answer[0], answer[1]) == (0x8A, 0x80 | len(payload))
        mask = itertools.cycle(answer[2:6])
        assert bytes(a ^ b for a, b in zip(answer[6:], mask, strict=False)) == payload
        assert line.gone is None


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65_536)
    except ConnectionError:
        return b""


def test_a_strict_server_understands_all_of_it() -> None:
    """websockets' own parser: handshake, frames of every length class, pong, last words and close."""
    came: list[tuple[Opcode, bytes]] = []
    faults: list[BaseException | None] = []
    lengths = (0, 1, 125, 126, 640, 65_535, 65_536, 200_000)

    def act(sock: socket.socket) -> None:
        server = ServerProtocol(max_size=None)
        # A caller who has hung up does not wait for our close: then there is nobody to read or write to.
        while data := _received(sock):
            server.receive_data(data)
            for event in server.events_received():
                if isinstance(event, Request):
                    server.send_response(server.accept(event))
                    server.send_ping(b"ping")
                else:
                    came.append((event.opcode, bytes(event.data)))  # type: ignore[attr-defined]
            with suppress(ConnectionError):
                for out in server.data_to_send():
                    if out:
                        sock.sendall(out)
        server.receive_eof()
        faults.append(server.parser_exc)

    with called(act) as line:
        assert heard(line, bool) == [(PING, b"ping")]
        for k, size in enumerate(lengths):
            line.put(frame(BINARY, bytes([k]) * size, bytes([k, 2, 3, 4])))
        line.close([(BINARY, b"last words")])
        with gevent.Timeout(WITHIN_S):
            while not faults:
                gevent.sleep(0.001)
    assert faults == [None]
    expected = [(Opcode.BINARY, bytes([k]) * size) for k, size in enumerate(lengths)]
    assert came == [
        (Opcode.PONG, b"ping"),
        *expected,
        (Opcode.BINARY, b"last words"),
        (Opcode.CLOSE, (1000).to_bytes(2, "big")),
    ]


def test_a_peer_that_reads_nothing_is_half_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNSENT_BYTES", 32 * 1024)
    done = threading.Event()

    def deaf(sock: socket.socket) -> None:
        done.wait(WITHIN_S)

    peer = Peer(upgraded(deaf))
    try:
        line = Line.connect(where(peer), "s", WITHIN_S, switchboard())
        with gevent.Timeout(WITHIN_S):
            while line.gone is None:
                line.put(frame(BINARY, bytes(16_000)))
                gevent.sleep(0)
        assert (line.gone.outcome, line.gone.kind) == ("disconnected", "half_open")
        line.put(b"more")  # nobody is told twice
        line.close()
        assert line.gone.kind == "half_open"
    finally:
        done.set()
        peer.close()


def test_hanging_up_twice_is_harmless() -> None:
    with called(upgraded(hold)) as line:
        line.close()
        line.close()
        line.control(PING, b"")
        assert line.gone is None or line.gone.outcome == "disconnected"


def test_two_calls_disturb_each_other_in_nothing() -> None:
    """One breaks every rule while the other goes on."""
    stop = threading.Event()

    def steady(sock: socket.socket) -> None:
        for k in range(50):
            sock.sendall(from_server(BINARY, bytes([k])))
        stop.wait(WITHIN_S)

    good, bad = Peer(upgraded(steady)), Peer(upgraded(writing(b"\xff" * 1000)))
    try:
        lines = [Line.connect(where(peer), "s", WITHIN_S, switchboard()) for peer in (good, bad)]
        assert until_gone(lines[1]).kind == "bad_websocket"
        found = heard(lines[0], lambda messages: len(messages) == 50)
        assert found == [(BINARY, bytes([k])) for k in range(50)]
        assert lines[0].gone is None
        lines[0].close()
    finally:
        stop.set()
        good.close()
        bad.close()


# ------------------------------------------------------------------------------------ where to


@pytest.mark.parametrize(
    ("host", "path", "address"),
    [
        ("ws://h:8100", PATH, "ws://h:8100/ws/s"),
        ("ws://h:8100/", PATH, "ws://h:8100/ws/s"),
        ("ws://h:8100/voice", PATH, "ws://h:8100/voice"),
        ("ws://h:8100/voice/{stream_id}/in", PATH, "ws://h:8100/voice/s/in"),
        ("wss://h/voice?room=1", PATH, "wss://h/voice?room=1"),
        ("ws://h", "/ws", "ws://h/ws"),
        ("ws://[::1]:8100", PATH, "ws://[::1]:8100/ws/s"),
    ],
)
def test_addresses(host: str, path: str, address: str) -> None:
    assert call_target(host, path, False, None).address("s") == address


@pytest.mark.parametrize(("host", "port"), [("ws://h", 80), ("wss://h", 443), ("ws://h:8100", 8100)])
def test_ports(host: str, port: int) -> None:
    assert call_target(host, PATH, False, None).port == port


@pytest.mark.parametrize("host", ["http://h:80", "h:8100", "ws://", "ws://:8100", "ws://h:port", "ws://h:99999", ""])
def test_a_host_that_cannot_be_called(host: str) -> None:
    with pytest.raises(BadTarget) as caught:
        call_target(host, PATH, False, None)
    assert "--host" in str(caught.value)


@pytest.mark.parametrize("host", ["ws://me:pa55@h:8100", "ws://me:pa55@h:port", "wss://pa55@h", "ws://me:pa55@"])
def test_credentials_in_an_address_are_refused_and_not_repeated(host: str) -> None:
    """An address is shown, stored and sent on; a token is not."""
    with pytest.raises(BadTarget) as caught:
        call_target(host, PATH, False, None)
    assert "pa55" not in str(caught.value)
    if "port" not in host:
        assert "CICADA_TOKEN" in str(caught.value)
