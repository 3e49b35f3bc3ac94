"""A voice agent that is as bad as it is told to be, by the number of the user who calls. Raw sockets, threads.

Knows nothing of Cicada: what it does is the truth that tests hold the rows against. BEHAVIOURS names each one; the
number of a user (worker-NUMBER-unique is the end of the path) picks it.
"""

import base64
import hashlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np

from tests.agent_peer import VOICED, Frame, Pcm, audio, user_number, voice

CHUNK_S = 0.02


class Gone(Exception):
    """The caller hung up."""


def message(data: bytes, first: int = 0x82) -> bytes:
    """A server's WebSocket message: binary and whole, unless `first` says otherwise."""
    if len(data) < 126:
        return bytes((first, len(data))) + data
    head = (
        struct.pack("!BBH", first, 126, len(data))
        if len(data) < 1 << 16
        else struct.pack("!BBQ", first, 127, len(data))
    )
    return head + data


def close(code: int, reason: str = "") -> bytes:
    return message(code.to_bytes(2, "big") + reason.encode(), 0x88)


class Caller:
    """One connection, its handshake still to be answered."""

    def __init__(self, sock: socket.socket, closing: threading.Event) -> None:
        self.sock, self.closing = sock, closing
        self._data = bytearray()
        self.path = self._key = ""
        self.utterances = 0  # that have begun
        self.speaks = False
        self._quiet_chunks = 1000

    def ask(self) -> None:
        """Read the request."""
        while b"\r\n\r\n" not in self._data:
            self._more()
            if not self._data.startswith(b"GET"):
                self.answer("400 Bad Request")
                raise Gone
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self._data = bytearray(rest)
        lines = head.decode().split("\r\n")
        self.path = lines[0].split()[1]
        keys = [line.split(": ")[1] for line in lines if line.lower().startswith("sec-websocket-key")]
        if not keys:  # no call: the master asks its targets for /health
            self.answer("404 Not Found")
            raise Gone
        self._key = keys[0]

    def accept(self, accept: str | None = None) -> None:
        digest = hashlib.sha1((self._key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        accept = accept or base64.b64encode(digest).decode()
        switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.sock.sendall(f"{switch}Sec-WebSocket-Accept: {accept}\r\n\r\n".encode())

    def answer(self, status: str, body: str = "", headers: str = "") -> None:
        self.sock.sendall(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode())

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise Gone
        self._data += data

    def _message(self) -> tuple[int, bytes]:
        while len(self._data) < 2:
            self._more()
        size, head = self._data[1] & 0x7F, 2
        head += {126: 2, 127: 8}.get(size, 0)
        while len(self._data) < head:
            self._more()
        size = int.from_bytes(self._data[2:head], "big") if head > 2 else size
        while len(self._data) < head + 4 + size:
            self._more()
        opcode, mask = self._data[0] & 0xF, self._data[head : head + 4]
        payload = np.frombuffer(bytes(self._data[head + 4 : head + 4 + size]), np.uint8)
        del self._data[: head + 4 + size]
        return opcode, (payload ^ np.resize(np.frombuffer(bytes(mask), np.uint8), size)).tobytes()

    def chunk(self) -> None:
        """Hear one chunk."""
        opcode, payload = self._message()
        if opcode == 8:
            raise Gone
        samples = np.frombuffer(Frame.FromString(payload).audio.audio, np.int16)
        if np.abs(samples.astype(np.int32)).max(initial=0) >= VOICED:
            self.utterances += self._quiet_chunks > 10
            self._quiet_chunks, self.speaks = 0, True
        else:
            self._quiet_chunks += 1
            self.speaks = self._quiet_chunks <= 10

    def user_speaks(self, for_chunks: int = 15) -> None:
        seen = self.utterances
        while self.utterances == seen:
            self.chunk()
        for _ in range(for_chunks):
            self.chunk()

    def user_spoke(self) -> None:
        self.user_speaks(0)
        while self.speaks:
            self.chunk()

    def say(self, pcm: Pcm, rate: int = 16_000) -> None:
        """Speak at the pace at which the caller's own chunks come."""
        size = round(rate * CHUNK_S)
        for start in range(0, len(pcm), size):
            self.sock.sendall(message(audio(pcm[start : start + size], rate)))
            self.chunk()

    def listen(self) -> None:
        while True:
            self.chunk()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def good(caller: Caller) -> None:
    caller.accept()
    while True:
        caller.user_spoke()
        caller.say(voice(0.5))


def instead(*data: bytes) -> Callable[[Caller], None]:
    """Something unfit in each turn, after its answer has begun."""

    def act(caller: Caller) -> None:
        caller.accept()
        while True:
            caller.user_spoke()
            caller.say(voice(0.2))
            for one in data:
                caller.sock.sendall(one)
            caller.say(voice(0.2))

    return act


def only(*data: bytes) -> Callable[[Caller], None]:
    """Something unfit, and never an answer."""

    def act(caller: Caller) -> None:
        caller.accept()
        while True:
            caller.user_spoke()
            for one in data:
                caller.sock.sendall(one)

    return act


def at(moment: str, *, code: int | None, reset: bool = False) -> Callable[[Caller], None]:
    """The line ends at a moment: with a close code, or without a word."""

    def act(caller: Caller) -> None:
        caller.accept()
        if moment == "mid-user-speech":
            caller.user_speaks()
        elif moment != "at connect":
            caller.user_spoke()
            caller.say(voice(0.3))
        if moment == "between turns":
            for _ in range(35):  # the answer is over after 0.4 s, thinking after 1 s
                caller.chunk()
        if code is not None:
            caller.sock.sendall(close(code, "so it is"))
        elif reset:
            caller.reset()
            return
        else:
            caller.sock.shutdown(socket.SHUT_WR)  # with bytes unread, `close` would reset
        caller.listen()

    return act


def refuse(status: str, body: str = "", headers: str = "") -> Callable[[Caller], None]:
    return lambda caller: caller.answer(status, body, headers)


def not_http(caller: Caller) -> None:
    caller.sock.sendall(b"220 smtp.example.com ESMTP\r\n")


def says_nothing(caller: Caller) -> None:
    caller.closing.wait(60)


def endless_head(caller: Caller) -> None:
    caller.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
    while not caller.closing.wait(0.2):
        caller.sock.sendall(b"X-More: of this\r\n")


def huge_head(caller: Caller) -> None:
    caller.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nX-More: " + b"a" * 200_000)
    caller.closing.wait(60)


def reads_nothing(caller: Caller) -> None:
    caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    caller.accept()
    caller.closing.wait(60)


def falls_silent(caller: Caller) -> None:
    caller.accept()
    caller.listen()


def talks_all_the_time(caller: Caller) -> None:
    caller.accept()
    while True:
        caller.say(voice(2.0))


def dribbles(caller: Caller) -> None:
    """A good answer, byte by byte."""
    caller.accept()
    while True:
        caller.user_spoke()
        pcm = voice(0.4)
        for start in range(0, len(pcm), 1600):
            data = message(audio(pcm[start : start + 1600]))
            for part in (data[:1], data[1:2], data[2:3], data[3:9], data[9:-1], data[-1:]):
                caller.sock.sendall(part)
                time.sleep(0.001)
            for _ in range(5):
                caller.chunk()


def _frame(field: int, data: bytes) -> bytes:
    """A protobuf message with one length-delimited field."""
    size = bytearray()
    length = len(data)
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    return bytes((field << 3 | 2,)) + bytes(size) + bytes((length,)) + data


QUIET = np.zeros(320, np.int16)
MP3_IN_WAV = b"RIFF" + struct.pack("<I", 40) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 85, 1, 16_000, 4000, 1, 0)
RATE_AND_CHANNEL = b"\x20\x80\x7d\x28\x01"  # 16 kHz, one
MB = 1 << 20


class Bad(NamedTuple):
    """What it does; outcome and error_kind of every turn it spoils, and what their line tells."""

    act: Callable[[Caller], None]
    outcome: str
    kind: str | None
    told: str = ""


BEHAVIOURS: dict[str, Bad] = {
    "good": Bad(good, "answered", None),
    "wrong path": Bad(refuse("404 Not Found"), "refused", "http_404", "check --host and --path"),
    "forbidden": Bad(refuse("403 Forbidden", "no entry"), "refused", "http_403", "no entry"),
    "unauthorised": Bad(refuse("401 Unauthorized"), "refused", "http_401", "CICADA_TOKEN"),
    "full": Bad(refuse("503 Service Unavailable", "come later"), "refused", "http_503", "the server is full"),
    "crashed": Bad(refuse("500 Internal Server Error", "boom"), "refused", "http_500", "boom"),
    "a long web page": Bad(refuse("404 Not Found", "x" * 60_000), "refused", "http_404", "xxx"),
    "moved": Bad(refuse("302 Found", "", "Location: ws://127.0.0.1:1/\r\n"), "refused", "http_302", "moved to ws://127.0.0.1:1/"),
    "a web page": Bad(refuse("200 OK", "<html>Welcome</html>"), "refused", "http_200", "a web page"),
    "no http": Bad(not_http, "protocol_error", "not_websocket", "speaks no WebSocket"),
    "wrong accept": Bad(lambda caller: caller.accept("bm90IHRoaXMgb25l"), "protocol_error", "not_websocket"),
    "closed in the handshake": Bad(lambda caller: None, "disconnected", "closed_before_answer", "handshake"),
    "silent handshake": Bad(says_nothing, "timed_out", "connect_timeout", "connect_timeout_s"),
    "endless handshake": Bad(endless_head, "timed_out", "connect_timeout", "connect_timeout_s"),
    "huge handshake": Bad(huge_head, "protocol_error", "not_websocket", "16384"),
    **{
        f"{code} {moment}": Bad(at(moment, code=code), "disconnected", f"ws_closed_{code}", f"with {code}: so it is")
        for code in (1000, 1011, 1013)
        for moment in ("at connect", "mid-user-speech", "mid-answer", "between turns")
    },
    **{
        f"1006 {moment}": Bad(at(moment, code=None), "disconnected", "ws_closed_1006", "check the server's log")
        for moment in ("at connect", "mid-user-speech", "mid-answer", "between turns")
    },
    "reset mid-answer": Bad(at("mid-answer", code=None, reset=True), "disconnected", "connection_broken", "reset"),
    "text": Bad(instead(message(b"hello", 0x81)), "protocol_error", "text_message", "hello"),
    "unknown kind": Bad(instead(message(_frame(9, b"what?"))), "protocol_error", "unknown_message", "of kind 9"),
    "no protobuf": Bad(instead(message(b"\xff\xff\xff\xff")), "protocol_error", "bad_protobuf", "no protobuf"),
    "one byte": Bad(instead(message(b"\x12")), "protocol_error", "bad_protobuf", "1 bytes"),
    "no byte": Bad(instead(message(b"")), "protocol_error", "unknown_message", "no byte"),
    "odd sample rate": Bad(instead(message(audio(QUIET, 7))), "protocol_error", "odd_sample_rate", "of 7 samples"),
    "empty audio": Bad(instead(message(audio(QUIET[:0]))), "protocol_error", "empty_audio"),
    "odd bytes": Bad(
        instead(message(_frame(2, _frame(3, b"\1\2\3") + RATE_AND_CHANNEL))), "protocol_error", "odd_bytes", "3 bytes"
    ),
    "bad wav": Bad(instead(message(_frame(2, _frame(3, MP3_IN_WAV)))), "protocol_error", "bad_wav"),
    "reserved bits": Bad(instead(message(b"hello", 0xF2)), "protocol_error", "bad_websocket", "reserved bits"),
    "5 MB of words": Bad(instead(message(_frame(1, _frame(3, b"a" * 5 * MB)))), "answered", None),
    "5 MB of nothing": Bad(instead(message(b"\xff" * 5 * MB)), "protocol_error", "bad_protobuf"),
    "5 MB of silence": Bad(
        only(message(audio(np.zeros(5 * MB // 2, np.int16)))), "timed_out", "no_answer_in_time", "answer_timeout_s"
    ),
    "40 MB": Bad(
        instead(struct.pack("!BBQ", 0x82, 127, 40 * MB)), "protocol_error", "bad_websocket", "above the limit"
    ),
    "many small messages": Bad(
        instead(*[message(audio(QUIET[:1]))] * 2000), "answered", None
    ),
    "reads nothing": Bad(reads_nothing, "disconnected", "half_open", "reads nothing"),
    "falls silent": Bad(falls_silent, "timed_out", "no_answer_in_time", "said nothing"),
    "talks all the time": Bad(talks_all_the_time, "timed_out", "never_stopped", "went on"),
    "dribbles": Bad(dribbles, "answered", None),
    "good, too": Bad(good, "answered", None),
}  # fmt: skip


class BadAgent:
    """Accepts until closed; one thread a connection."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._door = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._door.getsockname()[1]
        self.closing = threading.Event()
        self.calls = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'wss' if self._tls else 'ws'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._door.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError, Gone):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with sock:
                caller = Caller(sock, self.closing)
                caller.ask()
                self.calls += 1
                acts = list(BEHAVIOURS.values())
                acts[(user_number(caller.path) - 1) % len(acts)].act(caller)

    def close(self) -> None:
        self.closing.set()
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()


@contextmanager
def bad_agent(tls: ssl.SSLContext | None = None) -> Iterator[BadAgent]:
    agent = BadAgent(tls)
    try:
        yield agent
    finally:
        agent.close()
