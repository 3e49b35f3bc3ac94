"""A TTS server that is as bad as it is told to be: the text of each request names the behaviour. Raw sockets, threads.

Knows nothing of Cicada: what it does is the truth that tests hold the rows against.
"""

import json
import math
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

RATE = 24000


def tone(seconds: float) -> bytes:
    """Loud s16le from the first sample on."""
    return b"".join(struct.pack("<h", int(9000 * math.cos(k / 12))) for k in range(int(seconds * RATE)))


def wav(pcm: bytes, size: int | None = None) -> bytes:
    size = len(pcm) if size is None else size
    head = (
        b"RIFF"
        + struct.pack("<I", 36 + size & 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE * 2, 2, 16)
    )
    return head + b"data" + struct.pack("<I", size) + pcm


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def answer(status: str, kind: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


STREAMED = b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nTransfer-Encoding: chunked\r\n\r\n"

# What is sent, then whether the connection is kept, closed, reset, or left open in silence.
BEHAVIOURS: dict[str, tuple[bytes, str]] = {
    "good": (STREAMED + chunk(wav(tone(0.5))) + b"0\r\n\r\n", "keep"),
    "unauthorised": (answer("401 Unauthorized", "application/json", b'{"error": {"message": "who are you?"}}'), "keep"),
    "missing route": (answer("404 Not Found", "text/plain", b"nothing here"), "keep"),
    "crashed": (answer("500 Internal Server Error", "text/html", b"<h1>boom</h1>"), "keep"),
    "full": (answer("503 Service Unavailable", "application/json", b'{"detail": "queue full"}'), "keep"),
    "html page": (answer("200 OK", "text/html", b"<html>Welcome to nginx</html>"), "keep"),
    "json answer": (answer("200 OK", "application/json", b'{"url": "/audio/1.wav"}'), "keep"),
    "success false": (answer("200 OK", "application/json", b'{"success": false, "error": "no voice"}'), "keep"),
    "html as audio": (answer("200 OK", "audio/wav", b"<html>Welcome to nginx</html>"), "keep"),
    "cut mid chunk": (STREAMED + chunk(wav(tone(0.2), 0xFFFFFFFF)) + b"4000\r\n" + tone(0.1), "close"),
    "reset mid chunk": (STREAMED + chunk(wav(tone(0.2), 0xFFFFFFFF)), "reset"),
    "closed at once": (b"", "close"),
    "not http": (b"220 smtp.example.com ESMTP\r\n", "close"),
    "no audio": (answer("200 OK", "audio/wav", wav(b"")), "keep"),
    "empty body": (answer("200 OK", "audio/wav", b""), "keep"),
    "silence": (answer("200 OK", "audio/wav", wav(bytes(RATE))), "keep"),
    "short of its size": (answer("200 OK", "audio/wav", wav(tone(0.3), RATE * 2)), "keep"),
    "far too long": (answer("200 OK", "audio/wav", wav(tone(12.0))), "keep"),
    "never": (b"", "hang"),
    "headers only": (STREAMED, "hang"),
    "a byte a second": (STREAMED + chunk(wav(tone(0.1), 0xFFFFFFFF)), "drip"),
}


class BadPeer:
    """Accepts until closed; one thread a connection, requests one after another on it."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._door = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._door.getsockname()[1]
        self.requests: list[dict[str, object]] = []
        self.heads: list[str] = []
        self._closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._door.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with sock:
                while body := self._read_request(sock):
                    self.requests.append(body)
                    if not self._behave(sock, *BEHAVIOURS.get(str(body["text"]), BEHAVIOURS["good"])):
                        return

    def _read_request(self, sock: socket.socket) -> dict[str, object] | None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = sock.recv(65536)
            if not more:
                return None
            data += more
            if not b"POST".startswith(data[:4]):
                sock.sendall(answer("400 Bad Request", "text/plain", b"no request"))
                return None
        head, _, body = data.partition(b"\r\n\r\n")
        self.heads.append(head.decode())
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        while len(body) < length:
            body += sock.recv(65536)
        found: dict[str, object] = json.loads(body)
        return found

    def _behave(self, sock: socket.socket, data: bytes, then: str) -> bool:
        sock.sendall(data)
        if then == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if then == "hang":
            self._closing.wait(30)
        while then == "drip" and not self._closing.wait(0.3):
            sock.sendall(chunk(b"\x01"))
        return then == "keep"

    def close(self) -> None:
        self._closing.set()
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()


@contextmanager
def bad_peer(tls: ssl.SSLContext | None = None) -> Iterator[BadPeer]:
    peer = BadPeer(tls)
    try:
        yield peer
    finally:
        peer.close()
