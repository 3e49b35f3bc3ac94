"""Speak HTTP to a server over a bare socket and keep what the wire showed. Knows nothing of audio."""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Answer:
    """One answer, read to the end of its connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    pieces: list[bytes]  # as the chunked coding cut them; one for an unchunked body
    arrivals: list[tuple[float, bytes]]
    whole: bool  # ended as HTTP says, not by a lost connection


def open_request(port: int, path: str, body: Any, headers: Mapping[str, str] | None = None) -> socket.socket:
    """Send one POST and leave the connection open; the server is asked to close it after the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {
        "Host": "test",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(data)),
        **(headers or {}),
    }
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
    connection = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    connection.sendall(head.encode() + data)
    return connection


def read_answer(connection: socket.socket) -> Answer:
    arrivals: list[tuple[float, bytes]] = []
    with connection:
        while data := connection.recv(65536):
            arrivals.append((time.monotonic(), data))
    head, _, rest = b"".join(data for _, data in arrivals).partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        pieces, whole = _dechunk(rest)
    else:
        pieces, whole = [rest], len(rest) == int(headers["content-length"])
    return Answer(int(status_line.split()[1]), headers, b"".join(pieces), pieces, arrivals, whole)


def post(port: int, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
    return read_answer(open_request(port, path, body, headers))


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Everything up to the read that brought `mark`."""
    data = b""
    while mark not in data:
        more = connection.recv(65536)
        assert more, f"the connection ended after {data[:200]!r}"
        data += more
    return data


def _dechunk(data: bytes) -> tuple[list[bytes], bool]:
    pieces = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return pieces, rest == b"\r\n"
        pieces.append(rest[:length])
        data = rest[length + 2 :]
    return pieces, False
