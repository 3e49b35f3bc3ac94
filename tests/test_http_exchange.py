"""One request and its answer over real sockets: every way to end, and the instant of the first audio byte."""

import base64
import io
import json
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from statistics import median
from typing import NamedTuple

import gevent
import numpy as np
import pytest
import soundfile
import trustme
from gevent.event import Event

from tests.bad_peer import RATE, STREAMED, answer, chunk, tone, wav
from tests.test_link import ANCHOR_S, WITHIN_S, Act, Peer, Written, descriptors, hold, hub_errors, reset
from workers.audio.track import Track, amplitude
from workers.clients.http_connection import BadTarget, HttpConnection, Target, target
from workers.clients.http_exchange import Exchange
from workers.clients.http_speech import DIALECTS, Say
from workers.clients.inbox import Arrival
from workers.clients.switchboard import Switchboard, switchboard
from workers.failures import TurnFailed
from workers.samples.measure import Turn

__all__ = ["hub_errors"]  # a fixture, in force for every test here: nothing may be raised in the hub

LOUD = amplitude(-40.0)
SOUND = tone(0.25)
SAMPLES = np.frombuffer(SOUND, "<i2")
GOOD = STREAMED + chunk(wav(SOUND, 0xFFFFFFFF)) + b"0\r\n\r\n"

Step = bytes | float | Callable[[socket.socket], object]


class Asked(NamedTuple):
    """A request as a peer read it."""

    head: str
    body: bytes


def read_request(sock: socket.socket) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        body += sock.recv(65536)
    return Asked(head.decode(), body)


class Log:
    """What a peer read and when it wrote."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.read_at: list[float] = []
        self.written: list[Written] = []


class Leave(Exception):
    """A peer has had enough of this connection."""


def close(sock: socket.socket) -> None:
    raise Leave


def break_off(sock: socket.socket) -> None:
    reset(sock)
    raise Leave


def answering(*answers: bytes | list[Step], log: Log | None = None) -> Act:
    """Answer requests one after another on one connection: bytes are sent, numbers are waited for."""
    log = log or Log()

    def play(sock: socket.socket, step: Step) -> None:
        if isinstance(step, bytes):
            before = time.monotonic()
            sock.sendall(step)
            log.written.append(Written(before, time.monotonic()))
        elif isinstance(step, float):
            time.sleep(step)
        else:
            step(sock)

    def act(sock: socket.socket) -> None:
        for steps in answers:
            asked = read_request(sock)
            if asked is None:
                return
            log.asked.append(asked)
            log.read_at.append(time.monotonic())
            try:
                for step in [steps] if isinstance(steps, bytes) else steps:
                    play(sock, step)
            except Leave:
                return
        hold(sock)

    return act


class Caller:
    """One user's connection."""

    def __init__(
        self,
        where: Target,
        format_: str = "wav",
        connect_timeout_s: float = 2.0,
        board: Switchboard | None = None,
        keep: bool = True,
    ) -> None:
        self.connection = HttpConnection(where, board or switchboard(), connect_timeout_s)
        self._keep = keep
        self._dialect, self._format = where.dialect, format_
        self._asked = 0

    def ask(self, text: str = "Hello there.", timeout_s: float = 5.0) -> Turn:
        """One turn, recorded as a user would record it."""
        self._asked += 1
        turn = Turn("s", self._asked, "http_tts", "d", f"run.{self._asked}", "t", len(text), "alto", "measured", 0.0)
        turn.intended_at = time.monotonic()
        say = Say(text, "alto", self._format, 1.0, "tts-1", True)

        def begin() -> Exchange:
            return Exchange(self._dialect, self._format, RATE, Track(LOUD, self._keep))

        try:
            self.connection.ask(say, turn, time.monotonic() + timeout_s, begin)
        except TurnFailed as failure:
            turn.fail(failure.outcome, failure.kind, str(failure))
        turn.ended_at = time.monotonic()
        return turn


@contextmanager
def calling(
    *acts: Act, dialect: str = "synthesize", format_: str = "wav", token: str | None = None
) -> Iterator[tuple[Caller, Peer]]:
    with closing(Peer(*acts)) as peer:
        where = target(f"http://127.0.0.1:{peer.port}", DIALECTS[dialect], None, False, token)
        caller = Caller(where, format_)
        with closing(caller.connection):
            yield caller, peer


def assert_heard(turn: Turn) -> None:
    assert turn.ok, turn.error
    assert np.array_equal(turn.track.samples, SAMPLES)
    assert turn.track.sample_rate == RATE


# ------------------------------------------------------------------------------------------------ bodies


def ok(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: audio/wav", *lines, "", ""]).encode()


WAV = wav(SOUND)
TINY = b"".join(chunk(WAV[at : at + 7]) for at in range(0, len(WAV), 7))
CHUNKED = ok("Transfer-Encoding: chunked")
BODIES: dict[str, tuple[list[Step], bool]] = {
    # answer, whether the connection can be used again
    "chunked": ([CHUNKED + chunk(WAV) + b"0\r\n\r\n"], True),
    "chunked, header apart": ([CHUNKED, 0.01, chunk(WAV[:44]), 0.01, chunk(WAV[44:]), 0.01, b"0\r\n\r\n"], True),
    "chunked, seven bytes each": ([CHUNKED + TINY + b"0\r\n\r\n"], True),
    "chunked, sizes cut": ([CHUNKED + b"1", 0.01, b"0\r", 0.01, b"\n" + WAV[:16] + b"\r\n" + chunk(WAV[16:]) + b"0",
                            0.01, b"\r\n\r\n"], True),
    "chunked, extensions and trailers": ([CHUNKED + b"A;x=1\r\n" + WAV[:10] + b"\r\n" + chunk(WAV[10:])
                                          + b"0\r\nX-Checksum: 1\r\n\r\n"], True),
    "content length": ([answer("200 OK", "audio/wav", WAV)], True),
    "content length, byte by byte head": ([*[bytes([b]) for b in ok(f"Content-Length: {len(WAV)}")], WAV], True),
    "no content type": ([f"HTTP/1.1 200 OK\r\nContent-Length: {len(WAV)}\r\n\r\n".encode() + WAV], True),
    "upper case": ([f"HTTP/1.1 200 OK\r\nCONTENT-TYPE: AUDIO/WAV\r\nCONTENT-LENGTH: {len(WAV)}\r\n\r\n".encode()
                    + WAV], True),
    "until it is closed": ([ok("Connection: close") + WAV, close], False),
    "until it is closed, unsaid": ([ok() + WAV[:100], 0.01, WAV[100:], close], False),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\nContent-Type: audio/wav\r\n\r\n" + WAV, close], False),
    "told to close": ([ok("Connection: close", f"Content-Length: {len(WAV)}") + WAV], False),
    "100 before": ([b"HTTP/1.1 100 Continue\r\n\r\n", 0.01, GOOD], True),
    "100 before, in one": ([b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD], True),
    "103 with fields of its own": ([b"HTTP/1.1 103 Early Hints\r\nContent-Type: text/html\r\nLink: </x>\r\n\r\n", 0.01,
                                    GOOD], True),
    "several 1xx": ([b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 102 Processing\r\n\r\n" + GOOD[:40], 0.01,
                     GOOD[40:]], True),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_every_kind_of_body(name: str) -> None:
    steps, kept = BODIES[name]
    with calling(answering(steps, GOOD), answering(GOOD)) as (caller, _):
        turn = caller.ask()
        assert_heard(turn)
        assert turn.status == 200
        assert turn.audio_bytes == len(WAV)
        assert turn.wire_bytes > turn.audio_bytes
        again = caller.ask()
        assert_heard(again)
        assert again.connection_new is not kept
        assert caller.connection.opened == (1 if kept else 2)


def exchange(dialect: str = "synthesize", format_: str = "wav") -> Exchange:
    return Exchange(DIALECTS[dialect], format_, RATE, Track(LOUD, keep=True))


@pytest.mark.parametrize("name", ["chunked", "content length", "until it is closed", "100 before, in one"])
def test_an_answer_is_the_same_wherever_it_is_cut(name: str) -> None:
    """Straight into the parser, cut at every offset of the head and of what follows it."""
    short = wav(SOUND[:24])
    data = {
        "chunked": CHUNKED + chunk(short[:50]) + chunk(short[50:]) + b"0\r\n\r\n",
        "content length": answer("200 OK", "audio/wav", short),
        "until it is closed": ok() + short,
        "100 before, in one": b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + chunk(short) + b"0\r\n\r\n",
    }[name]
    for cut in range(1, len(data)):
        one = exchange()
        one.receive(data[:cut], Arrival(10.0, 10.0))
        one.receive(data[cut:], Arrival(11.0, 11.0))
        one.closed(None)
        one.wait(0.0)
        assert np.array_equal(one.track.samples, SAMPLES[:12])
        # The first chunk is the read that brought the first whole sample, and no header before it.
        first_sample_end = data.index(SOUND[:6]) + 2
        assert one.track.first_chunk_at == (10.0 if cut >= first_sample_end else 11.0)


# ------------------------------------------------------------------------------------------------ the request


def test_the_request_on_the_wire() -> None:
    log = Log()
    with calling(answering(GOOD, log=log), token="tok-1234") as (caller, peer):
        assert_heard(caller.ask('Grüße, "you" · 你好'))
    head, body = log.asked[0]
    lines = head.split("\r\n")
    assert lines[0] == "POST /v1/synthesize HTTP/1.1"
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    assert fields["host"] == f"127.0.0.1:{peer.port}"
    assert fields["authorization"] == "Bearer tok-1234"
    assert fields["content-type"] == "application/json"
    assert fields["x-request-id"] == "run.1"
    assert int(fields["content-length"]) == len(body)
    assert json.loads(body) == {"text": 'Grüße, "you" · 你好', "speaker_id": "alto"}
    assert b"tok-1234" not in body


def test_no_token_no_authorization() -> None:
    log = Log()
    with calling(answering(GOOD, log=log)) as (caller, _):
        caller.ask()
    assert "authorization" not in log.asked[0].head.lower()


def test_a_base_path_and_credentials_in_the_host() -> None:
    log = Log()
    with closing(Peer(answering(GOOD, log=log))) as peer:
        where = target(f"http://user:secret@127.0.0.1:{peer.port}/base/", DIALECTS["openai"], None, False, None)
        caller = Caller(where)
        with closing(caller.connection):
            assert_heard(caller.ask())
    head = log.asked[0].head
    assert head.startswith("POST /base/v1/audio/speech HTTP/1.1\r\n")
    assert "secret" not in head


@pytest.mark.parametrize(
    ("host", "path", "expected"),
    [
        ("http://h", None, ("h", 80, "/v1/synthesize", False)),
        ("http://h:8080/", None, ("h", 8080, "/v1/synthesize", False)),
        ("https://h", "/x?y=1", ("h", 443, "/x?y=1", True)),
        ("https://h:8443/api", "/x", ("h", 8443, "/api/x", True)),
        ("http://[::1]:9", None, ("::1", 9, "/v1/synthesize", False)),
    ],
)
def test_targets(host: str, path: str | None, expected: tuple[str, int, str, bool]) -> None:
    where = target(host, DIALECTS["synthesize"], path, False, None)
    assert (where.host, where.port, where.path, where.tls is not None) == expected


@pytest.mark.parametrize(
    "host", [None, "", "localhost:8080", "ftp://h", "http://", "http://h:99999", "http://h:port", "http://[::1"]
)
def test_a_target_that_cannot_be_spoken_to(host: str | None) -> None:
    with pytest.raises(BadTarget) as caught:
        target(host, DIALECTS["synthesize"], None, False, None)
    assert "--host" in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ ways to fail


@cache  # an Ogg stream has a random serial number
def compressed(name: str) -> bytes:
    file = io.BytesIO()
    how = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}[name]
    sound = (9000 * np.sin(np.arange(RATE) / 12)).astype(np.int16)
    soundfile.write(file, sound, RATE, format=how[0], subtype=how[1])
    return file.getvalue()


class Failure(NamedTuple):
    """What the server does; then the outcome, the kind, and something that the line must tell."""

    steps: list[Step]
    outcome: str
    kind: str
    told: str
    format: str = "wav"


RAW = b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\n"
SAID = b'{"error": {"message": "the voice is busy"}}'
UNENDED = CHUNKED + chunk(wav(SOUND, 0xFFFFFFFF))
MP3_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\n"
FAILURES = {
    "401": Failure([answer("401 Unauthorized", "application/json", SAID)], "refused", "http_401", "CICADA_TOKEN"),
    "404": Failure([answer("404 Not Found", "text/plain", b"nothing")], "refused", "http_404", "--path"),
    "429": Failure([answer("429 Slow down", "application/json", SAID)], "refused", "http_429", "the voice is busy"),
    "500": Failure([answer("500 Internal Server Error", "text/html", b"<h1>boom</h1>")], "refused", "http_500", "boom"),
    "503": Failure([answer("503 Full", "application/json", b'{"detail": "queue"}')], "refused", "http_503", "queue"),
    "500 without a word": Failure([answer("500 Oops", "text/plain", b"")], "refused", "http_500", "no text"),
    "500 until closed": Failure(
        [b"HTTP/1.1 500 Oops\r\n\r\nTraceback\n  line 1", close], "refused", "http_500", "Traceback line 1"
    ),
    "a redirect": Failure(
        [b"HTTP/1.1 301 Moved\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"], "refused", "http_301", "301"
    ),
    "HTML": Failure(
        [answer("200 OK", "text/html; charset=utf-8", b"<html>Welcome</html>")],
        "protocol_error", "wrong_content_type", "text/html",
    ),
    "JSON": Failure(
        [answer("200 OK", "application/json", b'{"url": "/1.wav"}')],
        "protocol_error", "wrong_content_type", "application/json",
    ),
    "success false": Failure(
        [answer("200 OK", "application/json", b'{"success": false, "error": "no voice"}')],
        "protocol_error", "server_said_failure", "no voice",
    ),
    "HTML as audio": Failure(
        [answer("200 OK", "audio/wav", b"<html>Welcome to nginx</html>")], "answered", "undecodable_audio", "<html>"
    ),
    "cut in a chunk": Failure(
        [UNENDED + b"4000\r\n" + SOUND[:4800], close], "disconnected", "cut_mid_stream", "0.35 s of audio"
    ),
    "cut between chunks": Failure([UNENDED, close], "disconnected", "cut_mid_stream", "0.25 s of audio"),
    "cut within its length": Failure(
        [ok("Content-Length: 99999") + WAV, close], "disconnected", "cut_mid_stream", "closed"
    ),
    "an error that is cut": Failure(
        [b"HTTP/1.1 500 Oops\r\nContent-Length: 999\r\n\r\nTrace", close], "disconnected", "cut_mid_stream", "closed"
    ),
    "reset in a chunk": Failure([UNENDED, 0.05, break_off], "disconnected", "cut_mid_stream", "broke"),
    "reset where only the end tells the length": Failure(
        [ok() + wav(SOUND, 0xFFFFFFFF), 0.05, break_off], "disconnected", "cut_mid_stream", "broke"
    ),
    "closed before any byte": Failure([close], "disconnected", "closed_before_answer", "closed the connection"),
    "reset before any byte": Failure([break_off], "disconnected", "closed_before_answer", "broke"),
    "closed within the head": Failure([ok()[:30], close], "disconnected", "closed_before_answer", "before it answered"),
    "100 and closed": Failure(
        [b"HTTP/1.1 100 Continue\r\n\r\n", close], "disconnected", "closed_before_answer", "before it answered"
    ),
    "SMTP": Failure([b"220 smtp.example.com ESMTP\r\n"], "protocol_error", "not_http", "smtp.example.com"),
    "TLS": Failure([b"\x15\x03\x01\x00\x02\x02\x46"], "protocol_error", "not_http", "no HTTP"),
    "HTTP/2": Failure([b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"], "protocol_error", "not_http", "no HTTP"),
    "a chunk size of letters": Failure([CHUNKED + b"xyz\r\n" + SOUND], "protocol_error", "not_http", "no HTTP"),
    "two lengths": Failure(
        [ok("Content-Length: 5", "Content-Length: 6") + WAV], "protocol_error", "not_http", "no HTTP"
    ),
    "never": Failure([hold], "timed_out", "no_answer_in_time", "no byte of an answer"),
    "a head and no more": Failure([CHUNKED, hold], "timed_out", "no_answer_in_time", "no audio"),
    "a WAV header, no more": Failure([CHUNKED + chunk(WAV[:44]), hold], "timed_out", "no_answer_in_time", "no audio"),
    "half an answer": Failure([UNENDED, hold], "timed_out", "answer_too_slow", "0.25 s of audio"),
    "short of its size": Failure(
        [answer("200 OK", "audio/wav", wav(SOUND, len(SOUND) + 2))], "answered", "truncated", "2 bytes more"
    ),
    "a WAV of nonsense": Failure(
        [answer("200 OK", "audio/wav", WAV[:20] + b"\x63\x00" + WAV[22:])], "answered", "undecodable_audio", "format 99"
    ),
    "an Ogg of nonsense": Failure(
        [answer("200 OK", "audio/ogg", b"OggS" + bytes(3000))], "answered", "undecodable_audio", "opus"
    ),
    "half a sample": Failure(
        [RAW + b"Content-Length: 5\r\n\r\n\x01\x00\x02\x00\x03"], "answered", "truncated", "sample", "pcm"
    ),
    "text as pcm": Failure(
        [RAW + b"Content-Length: 29\r\n\r\nInternal error: no such voice"],
        "answered", "undecodable_audio", "no such voice", "pcm",
    ),
    "half an mp3": Failure(
        [MP3_HEAD + b"Content-Length: 99999\r\n\r\n" + compressed("mp3"), hold],
        "timed_out", "answer_too_slow", "of audio", "mp3",
    ),
    "an mp3 that is cut": Failure(
        [MP3_HEAD + b"Content-Length: 99999\r\n\r\n" + compressed("mp3"), close],
        "disconnected", "cut_mid_stream", "closed", "mp3",
    ),
    "an mp3 short of a frame's end": Failure(
        [answer("200 OK", "audio/mpeg", compressed("mp3")[:-20])], "answered", "truncated", "frame", "mp3"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_has_its_kind(name: str) -> None:
    steps, outcome, kind, told, format_ = FAILURES[name]
    with calling(answering(steps), answering(GOOD), format_=format_) as (caller, _):
        turn = caller.ask(timeout_s=0.3 if outcome == "timed_out" else 5.0)
        assert (turn.outcome, turn.error_kind) == (outcome, kind), turn.error
        assert told in (turn.error or "")
        assert "\n" not in (turn.error or "")
        assert turn.connection_new


@pytest.mark.parametrize("name", ["cut in a chunk", "half an answer", "SMTP", "never", "short of its size", "404"])
def test_the_turn_after_a_failure_is_untouched_by_it(name: str) -> None:
    """Whether the connection is kept (a whole answer) or not: nothing of the failed turn gets into the next."""
    steps, outcome, *_ = FAILURES[name]
    with calling(answering(steps, GOOD), answering(GOOD)) as (caller, _):
        assert not caller.ask(timeout_s=0.3 if outcome == "timed_out" else 5.0).ok
        assert_heard(caller.ask())


_spoilt: list[Switchboard] = []  # kept: what it holds open would be missed by the garbage collector


@pytest.mark.parametrize("line", ["Content-Type: audio/pcm;rate=0", "Content-Type: audio/pcm\r\nX-Sample-Rate: 0"])
def test_a_sample_rate_of_nothing_is_the_servers_fault(line: str) -> None:
    """On a switchboard of its own: what a server says must not be able to stop it, and once did."""
    board = Switchboard()
    _spoilt.append(board)
    head = f"HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: {len(SOUND)}\r\n\r\n".encode()
    with closing(Peer(answering(head + SOUND))) as peer:
        where = target(f"http://127.0.0.1:{peer.port}", DIALECTS["synthesize"], None, False, None)
        caller = Caller(where, "pcm", board=board)
        with closing(caller.connection):
            turn = caller.ask(timeout_s=1.0)
    assert (turn.outcome, turn.error_kind) == ("answered", "undecodable_audio"), turn.error


def test_a_byte_now_and_then_does_not_put_off_the_deadline() -> None:
    """timeout_s is for the whole answer; a server that drips must not hold its user for ever."""

    def drip(sock: socket.socket) -> None:
        try:
            while True:
                sock.sendall(chunk(b"\x01\x00"))
                time.sleep(0.02)
        except OSError:
            raise Leave from None

    with calling(answering([UNENDED, drip])) as (caller, peer):
        turn = caller.ask(timeout_s=0.5)
        assert (turn.outcome, turn.error_kind) == ("timed_out", "answer_too_slow")
        assert turn.track.audio_s > 0.25
        peer.finished()  # the connection was closed


FLOOD = """
import socket, sys, time
door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
sock, _ = door.accept()
sock.recv(65536)
sock.sendall(sys.argv[1].encode().decode("unicode_escape").encode())
until = time.monotonic() + 5
try:
    while time.monotonic() < until:
        sock.sendall(b"\\x01\\x02" * 100_000)
    print("never", flush=True)
except OSError:
    print("hung up", flush=True)
"""


@pytest.mark.parametrize(
    ("begin", "kinds"),
    [
        (r"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\n\r\n", {"answer_too_slow"}),
        (r"HTTP/1.1 200 OK\r\nX-Endless: ", {"not_http", "no_answer_in_time"}),
        (r"HTTP/1.1 500 Oops\r\n\r\n", {"no_answer_in_time", "answer_too_slow", "http_500"}),
    ],
    ids=["body", "header", "error"],
)
def test_an_answer_without_end_ends_at_the_deadline(begin: str, kinds: set[str]) -> None:
    """As fast as loopback goes, for 5 s: the turn must not last as long as the server likes."""
    with subprocess.Popen([sys.executable, "-S", "-c", FLOOD, begin], stdout=subprocess.PIPE, text=True) as flood:
        assert flood.stdout is not None
        port = int(flood.stdout.readline())
        where = target(f"http://127.0.0.1:{port}", DIALECTS["synthesize"], None, False, None)
        caller = Caller(where, "pcm", keep=False)
        turn = caller.ask(timeout_s=0.3)
        caller.connection.close()
        assert turn.error_kind in kinds
        assert flood.stdout.readline().strip() == "hung up"


def test_a_huge_header_is_no_crash() -> None:
    """A cookie of 60 kB is legal; it may cost time, not the turn."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nSet-Cookie: {'x' * 60_000}\r\n".encode()
    with calling(answering(head + f"Content-Length: {len(WAV)}\r\n\r\n".encode() + WAV)) as (caller, _):
        assert_heard(caller.ask())


# ------------------------------------------------------------------------------------------------ connecting


def asked_of(host: str, port: int, scheme: str = "http", insecure: bool = False, timeout_s: float = 2.0) -> Turn:
    caller = Caller(target(f"{scheme}://{host}:{port}", DIALECTS["synthesize"], None, insecure, None), "wav", timeout_s)
    with closing(caller.connection):
        return caller.ask()


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    turn = asked_of("127.0.0.1", port)
    assert (turn.outcome, turn.error_kind) == ("refused", "connection_refused")
    assert f"127.0.0.1:{port}" in (turn.error or "")
    assert not turn.sent_at
    assert not turn.ready_at


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid", "a..invalid"])
def test_no_such_host(host: str, hub_errors: list[BaseException]) -> None:
    """Also where the name is none that DNS could hold, which Python reports in another way."""
    turn = asked_of(host, 80)
    hub_errors.clear()  # gevent's resolver mentions the other way in the hub, too
    assert (turn.outcome, turn.error_kind) == ("refused", "dns_failure"), turn.error
    assert host in (turn.error or "")


def test_a_host_that_does_not_pick_up() -> None:
    """A listen queue that is full: the kernel lets further connections wait."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen(0)
        port = door.getsockname()[1]
        callers = [socket.socket() for _ in range(4)]
        for sock in callers:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        turn = asked_of("127.0.0.1", port, timeout_s=0.3)
        for sock in callers:
            sock.close()
    assert (turn.outcome, turn.error_kind) == ("timed_out", "connect_timeout")
    assert "connect_timeout_s" in (turn.error or "")


@pytest.fixture(scope="module")
def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_a_self_signed_server_needs_the_switch(tls: ssl.SSLContext) -> None:
    with closing(Peer(hold, tls=tls)) as peer:
        turn = asked_of("127.0.0.1", peer.port, "https")
    assert (turn.outcome, turn.error_kind) == ("refused", "tls_failure")
    assert "--insecure" in (turn.error or "")
    with closing(Peer(answering(GOOD), tls=tls)) as peer:
        assert_heard(asked_of("127.0.0.1", peer.port, "https", insecure=True))


def test_https_to_a_server_that_speaks_http() -> None:
    with closing(Peer(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))) as peer:
        turn = asked_of("127.0.0.1", peer.port, "https")
    assert (turn.outcome, turn.error_kind) == ("refused", "tls_failure")
    assert "is it an https port?" in (turn.error or "")


def test_a_server_that_leaves_in_the_handshake() -> None:
    with closing(Peer(lambda sock: sock.recv(1))) as peer:
        turn = asked_of("127.0.0.1", peer.port, "https")
    assert (turn.outcome, turn.error_kind) == ("disconnected", "closed_before_answer"), turn.error


def test_a_whole_answer_over_tls_until_it_is_closed(tls: ssl.SSLContext) -> None:
    """The TLS end of data ends the answer, whatever its sender does with the connection afterwards."""

    def unwrap(sock: socket.socket) -> None:
        assert isinstance(sock, ssl.SSLSocket)
        sock.settimeout(2.0)
        try:
            sock.unwrap()
        except OSError:
            raise Leave from None

    with closing(Peer(answering([ok() + WAV, unwrap]), tls=tls)) as peer:
        caller = Caller(target(f"https://127.0.0.1:{peer.port}", DIALECTS["synthesize"], None, True, None))
        with closing(caller.connection):
            assert_heard(caller.ask(timeout_s=1.0))


# ------------------------------------------------------------------------------------------------ keeping it


def test_one_connection_for_many_turns() -> None:
    """S4.31: one client, reused."""
    before = descriptors()
    log = Log()
    with calling(answering(*[GOOD] * 25, log=log)) as (caller, _):
        turns = [caller.ask(f"Text {k}.") for k in range(25)]
        assert caller.connection.opened == 1
    for turn in turns:
        assert_heard(turn)
    assert [turn.connection_new for turn in turns] == [True] + [False] * 24
    assert len({turn.ready_at for turn in turns}) == 1
    assert [json.loads(asked.body)["text"] for asked in log.asked] == [f"Text {k}." for k in range(25)]
    assert descriptors() == before


def test_a_kept_connection_that_breaks_on_sending_is_made_anew() -> None:
    """Nobody has polled since it broke: the send is the first to know."""
    with calling(answering(GOOD, GOOD), answering(GOOD)) as (caller, _):
        assert_heard(caller.ask())
        link = caller.connection._link
        assert link is not None
        link._sock.shutdown(socket.SHUT_WR)
        second = caller.ask()
    assert_heard(second)
    assert second.connection_new
    assert caller.connection.opened == 2


def test_a_server_that_has_the_request_and_then_goes_has_failed() -> None:
    """On a kept connection too: asking again would turn its crash into a slow success, and double the load."""
    log = Log()
    with calling(answering(GOOD, [0.3, close], log=log), answering(GOOD, log=log)) as (caller, _):
        assert_heard(caller.ask())
        second = caller.ask()
    assert (second.outcome, second.error_kind) == ("disconnected", "closed_before_answer"), second.error
    assert len(log.asked) == 2


def test_a_server_that_closes_between_turns_is_no_failure() -> None:
    """Its keep-alive time was over: seen before the next turn, which begins on a new connection."""
    with calling(answering([GOOD, close]), answering(GOOD)) as (caller, _):
        assert_heard(caller.ask())
        gevent.sleep(0.05)
        turn = caller.ask()
        assert_heard(turn)
        assert turn.connection_new
        assert caller.connection.opened == 2


@pytest.mark.parametrize("leave", [close, break_off])
def test_a_server_that_closes_as_the_next_turn_begins_is_no_failure(leave: Step) -> None:
    """The race of every keep-alive connection: the request crosses the close, and is sent again on a new one."""
    log = Log()
    with calling(answering(GOOD, [leave], log=log), answering(GOOD, log=log)) as (caller, _):
        assert_heard(caller.ask("first"))
        turn = caller.ask("second")
        assert_heard(turn)
        assert turn.connection_new
        assert turn.ready_at > 0
    assert [json.loads(asked.body)["text"] for asked in log.asked] == ["first", "second", "second"]


def test_a_new_connection_that_is_closed_is_a_failure_and_not_tried_again() -> None:
    log = Log()
    with calling(answering([close], log=log), answering(GOOD, log=log)) as (caller, _):
        turn = caller.ask()
        assert turn.error_kind == "closed_before_answer"
    assert len(log.asked) == 1


def test_an_answer_that_had_begun_is_not_asked_for_again() -> None:
    log = Log()
    with calling(answering(GOOD, [ok()[:20], close], log=log), answering(GOOD, log=log)) as (caller, _):
        assert_heard(caller.ask())
        assert caller.ask().error_kind == "closed_before_answer"
    assert len(log.asked) == 2


def test_a_kept_connection_does_not_hide_a_dead_server() -> None:
    with calling(answering([GOOD, close])) as (caller, peer):
        assert_heard(caller.ask())
        peer.close()
        assert caller.ask().error_kind == "connection_refused"


def test_an_error_with_a_length_keeps_the_connection() -> None:
    with calling(answering(answer("503 Full", "text/plain", b"later"), GOOD)) as (caller, _):
        assert caller.ask().error_kind == "http_503"
        assert_heard(caller.ask())
        assert caller.connection.opened == 1


def test_what_a_server_says_between_turns_is_not_the_next_answer() -> None:
    late = answer("408 Request Timeout", "text/plain", b"too slow")
    with calling(answering([GOOD, 0.05, late]), answering(GOOD)) as (caller, _):
        assert_heard(caller.ask())
        gevent.sleep(0.15)
        assert_heard(caller.ask())


def test_a_user_who_is_stopped_leaves_no_connection_behind() -> None:
    began = Event()
    before = descriptors()
    with calling(answering([UNENDED, hold])) as (caller, peer):

        def ask() -> None:
            began.set()
            caller.ask()

        user = gevent.spawn(ask)
        began.wait(WITHIN_S)
        gevent.sleep(0.05)
        user.kill()
        peer.finished()  # it saw the connection close
    assert descriptors() == before
    assert switchboard().awaiting == 0


# ------------------------------------------------------------------------------------------------ when it came

DONE = b'data: {"type": "speech.audio.done"}\n\n'


def delta(audio: bytes) -> bytes:
    event = {"type": "speech.audio.delta", "audio": base64.b64encode(audio).decode()}
    return f"data: {json.dumps(event)}\n\n".encode()


def opus_header(data: bytes) -> bytes:
    """OpusHead and OpusTags are a page each; audio begins with the third."""
    second = data.index(b"OggS", 1)
    return data[: data.index(b"OggS", second + 1)]


def flac_header(data: bytes) -> bytes:
    at, last = 4, False
    while not last:
        last = data[at] >= 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return data[:at]


LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\x00\x00\x00Lavf58.76.100\x00"
LONG_HEADER = WAV[:36] + LIST + WAV[36:44]
ID3 = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
INFO = b': ping\r\n\r\ndata: {"type": "speech.audio.info", "sample_rate": 24000}\r\n\r\n'
HEADERS: dict[str, tuple[str, str, str, bytes, bytes]] = {
    # dialect, format, content type, what is no audio yet, what is
    "wav": ("synthesize", "wav", "audio/wav", WAV[:44], SOUND),
    "wav, 78 bytes": ("synthesize", "wav", "audio/x-wav", LONG_HEADER, SOUND),
    "opus": ("openai", "opus", "audio/ogg", opus_header(compressed("opus")), compressed("opus")),
    "flac": ("openai", "flac", "audio/flac", flac_header(compressed("flac")), compressed("flac")),
    "mp3 behind a tag": ("openai", "mp3", "audio/mpeg", ID3, compressed("mp3")),
    "events": ("openai_sse", "pcm", "text/event-stream", INFO, delta(SOUND) + DONE),
    "events, half of one": ("openai_sse", "pcm", "text/event-stream", delta(SOUND)[:400], delta(SOUND) + DONE),
    "events, a wav header in one": ("openai_sse", "wav", "text/event-stream", delta(WAV[:44]), delta(SOUND) + DONE),
}


@pytest.mark.parametrize("name", HEADERS)
def test_the_first_chunk_is_the_first_byte_of_audio(name: str) -> None:
    """A server that sends a header 200 ms before any sound has gained nothing."""
    dialect, format_, kind, header, audio = HEADERS[name]
    audio = audio.removeprefix(header)
    log = Log()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    steps: list[Step] = [head + chunk(header), 0.2, chunk(audio), b"0\r\n\r\n"]
    with calling(answering(steps, log=log), dialect=dialect, format_=format_) as (caller, _):
        turn = caller.ask()
    assert turn.ok, turn.error
    assert turn.clock == "kernel"
    early, on_time = log.written[:2]
    assert turn.sent_at <= log.read_at[0]
    assert turn.track.first_chunk_at > early.after + 0.1
    assert on_time.before - ANCHOR_S <= turn.track.first_chunk_at <= on_time.after + 0.05
    assert turn.track.audio_s == pytest.approx(0.25 if format_ in ("wav", "pcm") else 1.0, abs=0.06)


def test_headerless_pcm_counts_from_its_first_byte() -> None:
    log = Log()
    steps: list[Step] = [RAW + b"Transfer-Encoding: chunked\r\n\r\n", 0.1, chunk(SOUND), 0.1, b"0\r\n\r\n"]
    with calling(answering(steps, log=log), format_="pcm") as (caller, _):
        turn = caller.ask()
    assert_heard(turn)
    assert log.written[1].before - ANCHOR_S <= turn.track.first_chunk_at <= log.written[1].after + 0.05
    assert turn.track.last_chunk_at == turn.track.first_chunk_at, "the end of the body is no audio"


def test_every_chunk_has_its_own_instant() -> None:
    """20 chunks of 20 ms, 20 ms apart, the third one 100 ms late: what was injected is what is measured."""
    log = Log()
    piece = SOUND[:960]
    steps: list[Step] = [CHUNKED + chunk(wav(b"", 0xFFFFFFFF)), *[0.02, chunk(piece)] * 20, b"0\r\n\r\n"]
    steps.insert(5, 0.1)
    with calling(answering(steps, log=log)) as (caller, _):
        turn = caller.ask()
    assert turn.ok, turn.error
    wrote = log.written[1:21]
    assert len(turn.track.chunk_at) == 20
    assert turn.track.chunk_media_s.tolist() == pytest.approx([k * 0.02 for k in range(20)])
    late = [at - write.before for at, write in zip(turn.track.chunk_at, wrote, strict=True)]
    assert min(late) >= -ANCHOR_S
    assert median(late) < 0.001
    assert turn.track.first_audio_at == turn.track.first_chunk_at


@pytest.mark.parametrize(
    ("line", "rate"),
    [
        ("Content-Type: audio/pcm;rate=16000", 16_000),
        ("Content-Type: audio/L16; rate=8000; channels=1", 8_000),
        ("Content-Type: audio/pcm\r\nX-Sample-Rate: 22050", 22_050),
        ("Content-Type: audio/pcm", RATE),
        ("Content-Type: application/octet-stream", RATE),
    ],
)
def test_the_rate_of_headerless_pcm(line: str, rate: int) -> None:
    head = f"HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: {len(SOUND)}\r\n\r\n".encode()
    with calling(answering(head + SOUND), format_="pcm") as (caller, _):
        turn = caller.ask()
    assert turn.ok, turn.error
    assert turn.track.sample_rate == rate
    assert turn.track.audio_s == pytest.approx(len(SAMPLES) / rate)


@pytest.mark.parametrize("name", ["mp3", "opus", "flac"])
def test_compressed_audio_is_decoded(name: str) -> None:
    data = compressed(name)
    kind = {"mp3": "audio/mpeg", "opus": "audio/ogg", "flac": "audio/flac"}[name]
    with calling(answering(answer("200 OK", kind, data)), format_=name) as (caller, _):
        turn = caller.ask()
    assert turn.ok, turn.error
    assert turn.track.audio_s == pytest.approx(1.0, abs=0.06)
    assert turn.audio_bytes == len(data)
    assert turn.track.first_audio_at >= turn.track.first_chunk_at


@pytest.mark.parametrize("kind", ["audio/wav", "audio/mpeg"])
def test_an_answer_without_audio_has_no_instants(kind: str) -> None:
    with calling(answering(answer("200 OK", kind, b""))) as (caller, _):
        turn = caller.ask()
    assert turn.ok, turn.error  # that there was none is for defects.py to say
    assert not turn.track.sample_count
    assert not turn.track.first_chunk_at
